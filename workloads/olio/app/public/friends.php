<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\{HttpError, Layout, Paging, People, Request, Session, Views};

$name = Request::get('username') ?: Session::userName() ?? throw new HttpError(403, 'Please log in first.');
$id = People::id($name);
$page = Request::page();

Layout::begin("Friends of $name");
echo '<div class="box"><h2>Friends of ', e($name), '</h2>';
Views::people(People::friends($id, Paging::SIZE, Paging::offset($page)), 90);
Paging::links('friends.php', ['username' => $name], $page, People::numberOfFriends($id));
echo '</div>';
Layout::side();
Layout::end();
