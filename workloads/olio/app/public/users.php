<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\{Config, Events, Layout, Paging, People, Request, Session, Views};

$person = People::one(Request::get('username'));
$id = $person['userid'];
$name = $person['username'];
$self = Session::userId() === $id;
$old = Config::profile() === 'olio-0.1';

Layout::begin($name);
echo '<div class="box"><h2>', e($person['firstname'] . ' ' . $person['lastname']), '</h2><div class="detail"><div>';
Views::picture($old ? $person['imageurl'] : $person['imagethumburl'], $name, 120);
echo '</div><div><p>', e($name), '<br>', e($person['email']), '<br>', e($person['telephone']), '<br>', e($person['timezone']), '</p><p>',
    e($person['street1']), ' ', e($person['street2']), '<br>', e($person['city']), ' ', e($person['state']), ' ', e($person['zip']), '<br>',
    e($person['country']), '</p>';
if (Session::userId() !== null && !$self) {
    echo '<p><a href="addFriend.php?username=', u($name), '">Invite as a friend</a></p>';
}
echo '</div></div><p>', nl2br(e($person['summary'])), '</p></div><div class="box"><h2>Posted events</h2>';
Views::events(Events::postedBy($id, 1), pictures: false);
echo '<p><a href="postedEvents.php?username=', u($name), '">all</a></p></div>';
Layout::side();
$friends = People::friends($id, People::SHOWN_FRIENDS);
echo '<div class="box"><h2>Friends</h2>';
if ($old) {
    foreach ($friends as $friend) {
        echo '<a href="users.php?username=', u($friend['username']), '">', e($friend['firstname'] . ' ' . $friend['lastname']), '</a> ';
    }
} else {
    Views::people($friends);
}
echo '<p><a href="friends.php?username=', u($name), '">all</a></p></div>';
foreach (['Invitations' => People::incoming($id), 'Invited' => People::outgoing($id)] as $title => $others) {
    echo '<div class="box"><h2>', $title, '</h2>';
    foreach ($others as $other) {
        echo '<p><a href="users.php?username=', u($other['username']), '">', e($other['firstname'] . ' ' . $other['lastname']), '</a>';
        if ($self && $title === 'Invitations') {
            echo ' <a href="approveFriendship.php?username=', u($other['username']), '">approve</a> <a href="rejectInvite.php?username=',
                u($other['username']), '">reject</a>';
        } elseif ($self) {
            echo ' <a href="revokeInvite.php?username=', u($other['username']), '">revoke</a>';
        }
        echo '</p>';
    }
    echo '</div>';
}
Layout::end();
