<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\{Comments, HttpError, Request, Session};

$user = Session::requireUser();
$event = Request::id('socialEventID');
$text = Request::short('comments', 2500);
$rating = Request::id('rating');
if ($text === '' || $rating < 1 || $rating > 5) {
    throw new HttpError(400, 'A comment needs a text and one to five stars.');
}
Comments::add($event, $user, $text, $rating);
Request::redirect("events.php?socialEventID=$event");
