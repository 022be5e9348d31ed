<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\{People, Request};

header('Content-Type: text/plain; charset=utf-8');
echo People::isTaken(Request::any('username')) ? 'taken' : 'available';
