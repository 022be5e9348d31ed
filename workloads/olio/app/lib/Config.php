<?php
declare(strict_types=1);

namespace Olio;

/** What the guest's environment says. */
final class Config
{
    public const FILES = '/var/lib/olio/files';
    public const SEED = '/usr/share/olio/seed';

    public static function dbHost(): string
    {
        return getenv('OLIO_DB_HOST') ?: '127.0.0.1';
    }

    public static function dbPassword(): string
    {
        return getenv('OLIO_DB_PASSWORD') ?: 'olio';
    }

    /** "olio-0.1" (April 2009) or "olio-0.2" (January 2010). */
    public static function profile(): string
    {
        return getenv('OLIO_PROFILE') === 'olio-0.1' ? 'olio-0.1' : 'olio-0.2';
    }
}
