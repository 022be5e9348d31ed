<?php
declare(strict_types=1);

namespace Olio;

/** Lists of ten. */
final class Paging
{
    public const SIZE = 10;

    public static function offset(int $page): int
    {
        return ($page - 1) * self::SIZE;
    }

    /** @param array<string, string|int> $query the other parameters of the page's address */
    public static function links(string $url, array $query, int $page, int $total): void
    {
        $last = max(1, intdiv($total + self::SIZE - 1, self::SIZE));
        if ($last === 1) {
            return;
        }
        echo '<p class="pages">';
        if ($page > 1) {
            echo '<a href="', e($url . '?' . http_build_query($query + ['page' => $page - 1])), '">« previous</a>';
        }
        echo '<span>page ', $page, ' of ', $last, '</span>';
        if ($page < $last) {
            echo '<a href="', e($url . '?' . http_build_query($query + ['page' => $page + 1])), '">next »</a>';
        }
        echo '</p>';
    }
}
