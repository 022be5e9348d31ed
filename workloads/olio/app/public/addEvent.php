<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\{Layout, Session, Views};

Layout::begin('Add event', ['validateform']);
if (Session::userId() === null) {
    echo '<div class="box"><h2>Add an event</h2><p>Please log in first.</p></div>';
} else {
    $options = static function (string $name, int $from, int $to, int $step = 1): void {
        echo '<select name="', $name, '">';
        for ($i = $from; $i <= $to; $i += $step) {
            echo '<option>', sprintf('%02d', $i);
        }
        echo '</select> ';
    };
    echo '<div class="box"><h2>Add an event</h2><form class="wide" method="post" action="addEventResult.php" enctype="multipart/form-data">';
    Views::field('Title', 'title');
    Views::field('Summary', 'summary');
    echo '<p><label for="description">Description</label><textarea id="description" name="description" rows="5" maxlength="500"></textarea></p>',
        '<p><span>Date and time</span><span>';
    $options('year', (int) gmdate('Y'), (int) gmdate('Y') + 5);
    $options('month', 1, 12);
    $options('day', 1, 31);
    $options('hour', 0, 23);
    $options('minute', 0, 45, 15);
    echo '</span></p>';
    Views::field('Time zone', 'timezone');
    Views::field('Telephone', 'telephone');
    Views::addressFields();
    Views::field('Tags', 'tags');
    Views::field('Picture (JPEG)', 'upload_image', 'file');
    Views::field('Literature (PDF)', 'upload_literature', 'file');
    echo '<p><span></span><span><input type="hidden" name="submitter_user_name" value="', e(Session::userName()),
        '"><input type="submit" name="addeventsubmit" value="Create"></span></p></form></div>';
}
Layout::side();
Layout::end();
