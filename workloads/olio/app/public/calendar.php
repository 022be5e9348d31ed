<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\{Calendar, Request};

header('Content-Type: text/html; charset=utf-8');
Calendar::show(Request::id('yr'), Request::id('mon'));
