<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\{Events, HttpError, Layout, Paging, People, Request, Session, Views};

$name = Request::get('username') ?: Session::userName() ?? throw new HttpError(403, 'Please log in first.');
$page = Request::page();
$events = Events::attendedBy(People::id($name), $page);

Layout::begin("Upcoming events of $name");
echo '<div class="box"><h2>Upcoming events of ', e($name), '</h2>';
Views::events($events);
Paging::links('upcomingEvents.php', ['username' => $name], $page, Paging::offset($page) + count($events) + (count($events) === Paging::SIZE ? 1 : 0));
echo '</div>';
Layout::side();
Layout::end();
