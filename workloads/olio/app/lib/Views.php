<?php
declare(strict_types=1);

namespace Olio;

/** Parts that several pages show. */
final class Views
{
    private const DATE = 'l, F j, Y, H:i';

    public static function date(string $timestamp): string
    {
        return (new \DateTimeImmutable($timestamp))->format(self::DATE);
    }

    /** @param list<array<string, mixed>> $events */
    public static function events(array $events, bool $pictures = true): void
    {
        if ($events === []) {
            echo '<p>No events.</p>';
        }
        foreach ($events as $event) {
            $href = 'events.php?socialEventID=' . $event['socialeventid'];
            echo $pictures ? '<div class="event">' : '<div class="event plain">';
            if ($pictures) {
                self::picture($event['imagethumburl'], $event['title'], 90, $href);
            }
            echo '<div><h3><a href="', $href, '">', e($event['title']), '</a></h3>',
                '<div class="when">', e(self::date($event['eventtimestamp'])), ' · posted by <a href="users.php?username=', u($event['submitter']), '">',
                e($event['submitter']), '</a></div><div>', e($event['summary']), '</div></div></div>';
        }
    }

    /** @param list<array<string, mixed>> $people */
    public static function people(array $people, int $size = 50): void
    {
        echo '<div class="friends">';
        foreach ($people as $person) {
            $href = 'users.php?username=' . u($person['username']);
            echo '<div class="person">';
            self::picture($person['imagethumburl'], $person['username'], $size, $href);
            echo '<a href="', $href, '">', e($person['firstname'] . ' ' . $person['lastname']), '</a></div>';
        }
        echo '</div>';
    }

    public static function picture(string $file, string $alt, int $size, string $href = ''): void
    {
        $image = $file === ''
            ? '<span>no picture</span>'
            : sprintf('<img alt="%s" src="fileService.php?file=%s" height="%d" width="%d" />', e($alt), u($file), $size, $size);
        echo $href === '' ? $image : '<a href="' . $href . '">' . $image . '</a>';
    }

    /** @param list<array{tag: string, refcount: int}> $tags */
    public static function cloud(array $tags): void
    {
        $most = max([1, ...array_column($tags, 'refcount')]);
        echo '<div class="box"><h2>Tags</h2><div class="cloud">';
        foreach ($tags as ['tag' => $tag, 'refcount' => $count]) {
            $step = 1 + (int) floor(4 * log(1 + $count) / log(1 + $most));
            echo '<a class="size', $step, '" href="taggedEvents.php?tag=', u($tag), '&amp;count=', $count, '">', e($tag), '</a> ';
        }
        echo '</div><form method="post" action="taggedEvents.php"><p><input type="text" name="tag" size="10"> ',
            '<input type="submit" name="tagsearchsubmit" value="Search Tags"></p></form></div>';
    }

    public static function attendees(int $event, ?int $visitor): void
    {
        $number = Events::numberOfAttendees($event);
        $names = Events::attendees($event, $visitor);
        echo '<h2>', $number, ' people come</h2>';
        if ($visitor !== null) {
            $comes = in_array(Session::userName(), $names, true);
            echo '<p><a data-replace="attendees" href="', $comes ? 'deleteAttendee' : 'addAttendee', '.php?id=', $event, '">',
                $comes ? 'Unattend' : 'Attend', '</a></p>';
        }
        foreach ($names as $name) {
            echo '<a href="users.php?username=', u($name), '">', e($name), '</a><br>';
        }
        if ($number > count($names)) {
            echo '<span class="when">and ', $number - count($names), ' more</span>';
        }
    }

    public static function stars(int $rating): string
    {
        $rating = max(0, min(5, $rating));
        return str_repeat('<img alt="*" src="images/star_on.png" height="16" width="16" />', $rating)
            . str_repeat('<img alt="" src="images/star_off.png" height="16" width="16" />', 5 - $rating);
    }

    /** A labelled text field. */
    public static function field(string $label, string $name, string $type = 'text'): void
    {
        echo '<p><label for="', $name, '">', e($label), '</label><input type="', $type, '" id="', $name, '" name="', $name, '"></p>';
    }

    public static function addressFields(): void
    {
        foreach (['street1' => 'Street', 'street2' => 'Street, line 2', 'zip' => 'Postal code', 'city' => 'City', 'state' => 'State', 'country' => 'Country'] as $name => $label) {
            self::field($label, $name);
        }
    }
}
