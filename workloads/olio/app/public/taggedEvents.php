<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\{Events, Layout, Paging, Request, Tags, Views};

$tag = strtolower(Request::any('tag'));
$page = Request::page();
$count = Request::id('count') ?: Tags::count($tag);
$events = Events::tagged($tag, $page);

Layout::begin('Events tagged ' . $tag);
echo '<div class="box"><h2>Events tagged “', e($tag), '”</h2>';
Views::events($events);
if ($events !== []) {
    Paging::links('taggedEvents.php', ['tag' => $tag, 'count' => $count], $page, $count);
}
echo '</div>';
Layout::side();
Views::cloud(Tags::cloud());
Layout::end();
