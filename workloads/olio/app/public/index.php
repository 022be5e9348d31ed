<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\{Calendar, Events, Layout, Paging, Request, Tags, Views};

$page = Request::page();
$zip = Request::get('zipcode');
$order = Request::get('order');
[$year, $month, $day] = [Request::id('year'), Request::id('month'), Request::id('day')];
$date = checkdate($month, $day, $year) ? sprintf('%04d-%02d-%02d', $year, $month, $day) : null;
[$events, $total] = Events::upcoming($date, $zip, $order === 'created', $page);
$query = array_filter(
    ['zipcode' => $zip, 'order' => $order] + ($date === null ? [] : ['year' => $year, 'month' => $month, 'day' => $day]),
    static fn (string|int $value): bool => $value !== '',
);

Layout::begin('Home');
echo '<div class="box"><h2>', $date === null ? 'Upcoming events' : 'Events of ' . e($date), '</h2>';
Views::events($events);
Paging::links('index.php', $query, $page, $total);
echo '</div>';
Layout::side();
echo '<div class="box" id="calendar">';
Calendar::show(Request::id('yr') ?: $year ?: (int) gmdate('Y'), Request::id('mon') ?: $month ?: (int) gmdate('n'));
echo '</div><div class="box"><h2>Filter</h2><form action="index.php"><p><label>Postal code<br><input type="text" name="zipcode" size="8" value="', e($zip),
    '"></label> <select name="order"><option value="">by date<option value="created"', $order === 'created' ? ' selected' : '',
    '>newest first</select> <input type="submit" value="Show"></p></form></div>';
Views::cloud(Tags::cloud());
Layout::end();
