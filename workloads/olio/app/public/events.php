<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\{Comments, Events, Layout, Request, Session, Tags, Views};

$id = Request::id('socialEventID');
$event = Events::one($id);
$user = Session::userId();

Layout::begin($event['title'], ['starrating']);
echo '<div class="box"><h2>', e($event['title']), '</h2><div class="detail"><div>';
Views::picture($event['imagethumburl'], $event['title'], 150);
echo '</div><div><p class="when">', e(Views::date($event['eventtimestamp'])), ' (', e($event['timezone']), ')</p><p><b>', e($event['summary']),
    '</b></p><p>', nl2br(e($event['description'])), '</p><p>', e($event['street1']), ' ', e($event['street2']), '<br>',
    e($event['city']), ' ', e($event['state']), ' ', e($event['zip']), ', ', e($event['country']), '<br>', e($event['latitude']), ', ', e($event['longitude']),
    '<br>', e($event['telephone']), '</p><p>Posted by <a href="users.php?username=', u($event['submitter']), '">', e($event['submitter']), '</a></p>';
if ($event['literatureurl'] !== '') {
    echo '<p><a href="fileService.php?file=', u($event['literatureurl']), '">Event literature</a></p>';
}
echo '<p class="cloud">';
foreach (Tags::ofEvent($id) as $tag) {
    echo '<a href="taggedEvents.php?tag=', u($tag), '">', e($tag), '</a> ';
}
echo '</p></div></div></div>';

$votes = $event['numberofvotes'];
echo '<div class="box"><h2>', $votes, ' comments', $votes ? ' ' . Views::stars((int) round($event['totalscore'] / $votes)) : '', '</h2>';
if ($user !== null) {
    echo '<form method="post" action="addComment.php"><input type="hidden" name="socialEventID" value="', $id, '">',
        '<input type="hidden" name="rating" id="rating" value="3"><p><textarea name="comments" rows="3" cols="60" maxlength="2500"></textarea><br>';
    for ($star = 1; $star <= 5; $star++) {
        echo '<img alt="', $star, '" id="star_', $star, '" data-star="', $star, '" src="images/star_', $star <= 3 ? 'on' : 'off', '.png" height="18" width="18" />';
    }
    echo ' <input type="submit" value="Comment"></p></form>';
}
foreach (Comments::ofEvent($id) as $comment) {
    echo '<div class="comment"><a href="users.php?username=', u($comment['username']), '">', e($comment['username']), '</a> <span class="stars">',
        Views::stars($comment['ratings']), '</span> <span class="when">', e(Views::date($comment['created_at'])), '</span>';
    if ($comment['userid'] === $user) {
        echo ' <form method="post" action="deleteComment.php"><input type="hidden" name="commentid" value="', $comment['commentid'],
            '"><input type="submit" value="Delete"></form>';
    }
    echo '<p>', nl2br(e($comment['comments'])), '</p></div>';
}
echo '</div>';
Layout::side();
echo '<div class="box" id="attendees">';
Views::attendees($id, $user);
echo '</div>';
Layout::end();
