<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\{Request, Session};

Session::end();
Request::redirect('index.php');
