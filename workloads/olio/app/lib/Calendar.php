<?php
declare(strict_types=1);

namespace Olio;

/** A month; each day leads to its events. */
final class Calendar
{
    public static function show(int $year, int $month): void
    {
        if ($month < 1 || $month > 12 || $year < 1970 || $year > 9999) {
            [$year, $month] = [(int) gmdate('Y'), (int) gmdate('n')];
        }
        $first = gmmktime(0, 0, 0, $month, 1, $year);
        $days = (int) gmdate('t', $first);
        $column = (int) gmdate('w', $first);
        $today = gmdate('Y-n') === "$year-$month" ? (int) gmdate('j') : 0;
        echo '<table class="calendar"><caption>', self::turn($year, $month - 1, '«'), ' ', gmdate('F Y', $first), ' ', self::turn($year, $month + 1, '»'),
            '</caption><tr><th>Su<th>Mo<th>Tu<th>We<th>Th<th>Fr<th>Sa</tr><tr>', str_repeat('<td></td>', $column);
        for ($day = 1; $day <= $days; $day++) {
            echo $day === $today ? '<td class="today">' : '<td>', '<a href="index.php?year=', $year, '&amp;month=', $month, '&amp;day=', $day, '">', $day, '</a></td>';
            if (++$column % 7 === 0 && $day < $days) {
                echo '</tr><tr>';
            }
        }
        echo '</tr></table>';
    }

    private static function turn(int $year, int $month, string $sign): string
    {
        [$year, $month] = [$year + ($month > 12) - ($month < 1), ($month + 11) % 12 + 1];
        return '<a data-replace="calendar" href="calendar.php?yr=' . $year . '&amp;mon=' . $month . '">' . $sign . '</a>';
    }
}
