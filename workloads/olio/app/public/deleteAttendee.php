<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\{Events, Request, Session, Views};

$user = Session::requireUser();
$id = Request::id('id');
Events::leave($id, $user);
header('Content-Type: text/html; charset=utf-8');
header('Cache-Control: no-store');
Views::attendees($id, $user);
