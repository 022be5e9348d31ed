<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\{FileStore, HttpError, Request};

// The busiest page: no session, no database.
const TYPES = ['jpg' => 'image/jpeg', 'pdf' => 'application/pdf'];
$name = Request::get('file');
$path = FileStore::path($name);
$stat = $path === null ? false : @stat($path);
if ($stat === false) {
    throw new HttpError(404, 'There is no such file.');
}
header('Cache-Control: public, max-age=31536000, immutable');
header('Expires: ' . gmdate(DATE_RFC7231, time() + 31536000));
header('Last-Modified: ' . gmdate(DATE_RFC7231, $stat['mtime']));
$since = strtotime($_SERVER['HTTP_IF_MODIFIED_SINCE'] ?? '');
if ($since !== false && $stat['mtime'] <= $since) {
    http_response_code(304);
    exit;
}
header('Content-Type: ' . TYPES[substr($name, -3)]);
header('X-Content-Type-Options: nosniff');
header('Content-Length: ' . $stat['size']);
readfile($path);
