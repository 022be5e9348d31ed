<?php
declare(strict_types=1);

namespace Olio;

/** Fields of the request: always text of valid UTF-8, never an array. */
final class Request
{
    public static function get(string $name, string $default = ''): string
    {
        return self::text($_GET, $name, $default);
    }

    public static function post(string $name, string $default = ''): string
    {
        return self::text($_POST, $name, $default);
    }

    /** A field cut to so many bytes. */
    public static function short(string $name, int $bytes): string
    {
        return self::cut(self::post($name), $bytes);
    }

    /** The start of a text, at most so many bytes, never half a character. */
    public static function cut(string $text, int $bytes): string
    {
        if (strlen($text) <= $bytes) {
            return $text;
        }
        while ($bytes > 0 && (ord($text[$bytes]) & 0xC0) === 0x80) {
            $bytes--;
        }
        return substr($text, 0, $bytes);
    }

    public static function any(string $name): string
    {
        return isset($_POST[$name]) ? self::post($name) : self::get($name);
    }

    public static function id(string $name): int
    {
        $text = self::any($name);
        return preg_match('/^[0-9]{1,9}$/D', $text) === 1 ? (int) $text : 0;
    }

    public static function page(): int
    {
        return max(1, min(100000, (int) self::get('page', '1')));
    }

    public static function isPost(): bool
    {
        return $_SERVER['REQUEST_METHOD'] === 'POST';
    }

    public static function redirect(string $location): never
    {
        header('Location: ' . $location, true, 302);
        exit;
    }

    /** @param array<string, mixed> $fields */
    private static function text(array $fields, string $name, string $default): string
    {
        $value = $fields[$name] ?? null;
        return is_string($value) && preg_match('//u', $value) === 1 ? trim(str_replace("\0", '', $value)) : $default;
    }
}
