<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\{Address, Events, FileStore, HttpError, Request, Session, Tags, Thumbnail, Upload};

$user = Session::requireUser();
[$year, $month, $day, $hour, $minute] = array_map(Request::id(...), ['year', 'month', 'day', 'hour', 'minute']);
if (!checkdate($month, $day, $year) || $year < 1970 || $year > 9999 || $hour > 23 || $minute > 59) {
    throw new HttpError(400, 'There is no such date.');
}
$event = [
    'title' => Request::short('title', 100), 'description' => Request::short('description', 500), 'telephone' => Request::short('telephone', 25),
    'timezone' => Request::short('timezone', 40), 'when' => sprintf('%04d-%02d-%02d %02d:%02d:00', $year, $month, $day, $hour, $minute),
];
$event['summary'] = Request::short('summary', 100) ?: Request::cut($event['description'], 90);
if ($event['title'] === '') {
    throw new HttpError(400, 'An event needs a title.');
}
$picture = Upload::jpeg('upload_image');
$literature = Upload::pdf('upload_literature');
$thumbnail = $picture === null ? null : Thumbnail::make($picture->path);
$id = Events::add($user, $event, Address::fromForm(), Tags::parse(Request::post('tags')), $picture !== null, $literature !== null);
if ($picture !== null && $thumbnail !== null) {
    FileStore::put($picture->path, 'events', $id, "E$id.jpg");
    FileStore::put($thumbnail, 'eventThumbs', $id, "E{$id}T.jpg");
}
if ($literature !== null) {
    FileStore::put($literature->path, 'eventLits', $id, "E{$id}L.pdf");
}
Request::redirect("events.php?socialEventID=$id");
