<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\{Db, Request};

header('Content-Type: application/json');
$place = Db::row('SELECT city, state FROM ADDRESS WHERE zip = ? LIMIT 1', [Request::any('zip')]);
echo json_encode($place ?? ['city' => '', 'state' => ''], JSON_THROW_ON_ERROR);
