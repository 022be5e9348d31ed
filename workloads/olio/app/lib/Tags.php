<?php
declare(strict_types=1);

namespace Olio;

/** Tags and their cloud. */
final class Tags
{
    /** @return list<array{tag: string, refcount: int}> the most used ones, by name */
    public static function cloud(int $size = 50): array
    {
        $tags = Db::rows('SELECT tag, refcount FROM SOCIALEVENTTAG ORDER BY refcount DESC, tag DESC LIMIT ' . $size);
        usort($tags, static fn (array $a, array $b): int => strnatcmp($a['tag'], $b['tag']));
        return $tags;
    }

    /** @return list<string> */
    public static function ofEvent(int $id): array
    {
        return array_column(Db::rows(
            'SELECT t.tag FROM SOCIALEVENTTAG_SOCIALEVENT ts JOIN SOCIALEVENTTAG t ON t.socialeventtagid = ts.socialeventtagid WHERE ts.socialeventid = ?',
            [$id],
        ), 'tag');
    }

    public static function count(string $tag): int
    {
        return Db::number('SELECT refcount FROM SOCIALEVENTTAG WHERE tag = ?', [$tag]);
    }

    /** @return list<string> sorted, as two requests that update tags in different orders would wait for each other */
    public static function parse(string $text): array
    {
        $tags = preg_split('/[\s,]+/u', strtolower($text), -1, PREG_SPLIT_NO_EMPTY) ?: [];
        $tags = array_unique(array_map(static fn (string $tag): string => Request::cut($tag, 30), $tags));
        sort($tags, SORT_STRING);
        return array_slice($tags, 0, 20);
    }

    /** @param list<string> $tags sorted */
    public static function attach(int $event, array $tags): void
    {
        foreach ($tags as $tag) {
            $id = Db::insert(
                'INSERT INTO SOCIALEVENTTAG (tag, refcount) VALUES (?, 1) '
                . 'ON DUPLICATE KEY UPDATE refcount = refcount + 1, socialeventtagid = LAST_INSERT_ID(socialeventtagid)',
                [$tag],
            );
            Db::run('INSERT IGNORE INTO SOCIALEVENTTAG_SOCIALEVENT (socialeventtagid, socialeventid) VALUES (?, ?)', [$id, $event]);
        }
    }
}
