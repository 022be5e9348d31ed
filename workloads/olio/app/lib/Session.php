<?php
declare(strict_types=1);

namespace Olio;

/** Who is looking. Sessions are files, read at once and released, so that one visitor's requests never wait for each other. */
final class Session
{
    private static bool $read = false;

    public static function open(): void
    {
        if (!self::$read) {
            session_start(['read_and_close' => true]);
            self::$read = true;
        }
    }

    public static function userId(): ?int
    {
        self::open();
        return $_SESSION['userid'] ?? null;
    }

    public static function userName(): ?string
    {
        self::open();
        return $_SESSION['username'] ?? null;
    }

    public static function requireUser(): int
    {
        return self::userId() ?? throw new HttpError(403, 'Please log in first.');
    }

    public static function begin(int $userId, string $userName): void
    {
        session_start();
        if (session_id() === ($_COOKIE[session_name()] ?? null)) {
            session_regenerate_id(true); // an id that was known before the log-in is worth nothing after it
        }
        $_SESSION = ['userid' => $userId, 'username' => $userName];
        session_write_close();
        self::$read = true;
    }

    public static function end(): void
    {
        if (isset($_COOKIE[session_name()])) {
            session_start();
            $_SESSION = [];
            session_destroy();
            setcookie((string) session_name(), '', 1, '/');
        }
    }
}
