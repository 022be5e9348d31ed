<?php
declare(strict_types=1);

namespace Olio;

/**
 * Pictures and documents. Uploaded files (names with capital letters) lie in Olio's LocalFS layout:
 * root / kind / id mod 1000 / (id / 10^6) mod 1000 / name. Seeded names (small letters) share a few files of the image, by their
 * number: a store with a file of its own for each would have 50 GB.
 */
final class FileStore
{
    private const FULL = 4;
    private const THUMBNAILS = 16;
    private const DOCUMENTS = 2;

    public static function path(string $name): ?string
    {
        if (preg_match('/^([pe])([1-9][0-9]{0,8})([tl]?)\.(jpg|pdf)$/iD', $name, $parts) !== 1) {
            return null;
        }
        [, $owner, $id, $variant, $ending] = $parts;
        $seeded = $owner === strtolower($owner);
        $kind = self::kind(strtolower($owner), strtolower($variant), $ending);
        if ($kind === null || (!$seeded && $variant !== strtoupper($variant)) || ($seeded && $variant !== strtolower($variant))) {
            return null;
        }
        return $seeded ? self::seedPath($kind, (int) $id) : self::uploadPath($kind, (int) $id, $name);
    }

    public static function uploadPath(string $kind, int $id, string $name): string
    {
        return sprintf('%s/%s/%d/%d/%s', Config::FILES, $kind, $id % 1000, intdiv($id, 1000000) % 1000, $name);
    }

    /** Move a file to its place: readers see it whole or not at all. */
    public static function put(string $source, string $kind, int $id, string $name): void
    {
        $path = self::uploadPath($kind, $id, $name);
        $folder = dirname($path);
        if (!is_dir($folder) && !@mkdir($folder, 0750, true) && !is_dir($folder)) {
            throw new \RuntimeException("cannot make $folder");
        }
        if (!rename($source, $path)) {
            throw new \RuntimeException("cannot store $path");
        }
    }

    private static function kind(string $owner, string $variant, string $ending): ?string
    {
        return match ("$owner$variant.$ending") {
            'p.jpg' => 'persons',
            'pt.jpg' => 'personThumbs',
            'e.jpg' => 'events',
            'et.jpg' => 'eventThumbs',
            'el.pdf' => 'eventLits',
            default => null,
        };
    }

    private static function seedPath(string $kind, int $id): string
    {
        return match ($kind) {
            'persons', 'events' => Config::SEED . "/$kind/" . $id % self::FULL . '.jpg',
            'eventLits' => Config::SEED . "/$kind/" . $id % self::DOCUMENTS . '.pdf',
            default => Config::SEED . '/' . Config::profile() . "/$kind/" . $id % self::THUMBNAILS . '.jpg',
        };
    }
}
