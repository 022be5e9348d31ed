<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\{Comments, HttpError, Request, Session};

$user = Session::requireUser();
if (!Request::isPost()) {
    throw new HttpError(405, 'Comments are deleted by POST.');
}
$event = Comments::delete(Request::id('commentid'), $user);
Request::redirect("events.php?socialEventID=$event");
