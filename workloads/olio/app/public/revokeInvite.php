<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\{People, Request, Session};

$user = Session::requireUser();
$name = Request::any('username');
$other = People::id($name);
People::dropInvitation($other, $user);
Request::redirect('users.php?username=' . u($name));
