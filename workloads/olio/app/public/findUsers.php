<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\{Layout, Paging, People, Request, Views};

$query = Request::get('query');
$page = Request::page();
$people = $query === '' ? [] : People::search($query, $page);

Layout::begin('Find people');
echo '<div class="box"><h2>Find people</h2><form action="findUsers.php"><p><input type="text" name="query" value="', e($query),
    '"> <input type="submit" value="Find"></p></form>';
Views::people($people, 90);
// One more page is offered as long as this one is full: counting all hits of a prefix would cost more than the search.
Paging::links('findUsers.php', ['query' => $query], $page, Paging::offset($page) + count($people) + (count($people) === Paging::SIZE ? 1 : 0));
echo '</div>';
Layout::side();
Layout::end();
