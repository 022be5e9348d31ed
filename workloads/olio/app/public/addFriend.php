<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\{People, Request, Session};

$user = Session::requireUser();
$name = Request::any('username');
$other = People::id($name);
People::invite($user, $other);
Request::redirect('users.php?username=' . u($name));
