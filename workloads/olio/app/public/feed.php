<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\Events;

$base = 'http://' . ($_SERVER['HTTP_HOST'] ?? 'localhost') . '/';
header('Content-Type: application/rss+xml; charset=utf-8');
echo '<?xml version="1.0" encoding="UTF-8"?><rss version="2.0"><channel><title>Olio</title><link>', e($base), '</link><description>Newest events</description>';
foreach (Events::newest() as $event) {
    $link = $base . 'events.php?socialEventID=' . $event['socialeventid'];
    echo '<item><title>', e($event['title']), '</title><link>', e($link), '</link><guid>', e($link), '</guid><description>', e($event['summary']),
        '</description><pubDate>', (new DateTimeImmutable($event['createdtimestamp']))->format(DATE_RSS), '</pubDate></item>';
}
echo '</channel></rss>';
