<?php
// First line of every page: classes by name, errors as exceptions, the right status when one is not caught.
declare(strict_types=1);

use Olio\HttpError;
use Olio\Layout;

spl_autoload_register(static function (string $class): void {
    if (str_starts_with($class, 'Olio\\')) {
        require __DIR__ . '/' . substr($class, 5) . '.php';
    }
});

set_exception_handler(static function (Throwable $error): void {
    $status = $error instanceof HttpError ? $error->status : 500;
    if ($status === 500) {
        error_log((string) $error);
    }
    if (!headers_sent()) {
        http_response_code($status);
    }
    while (ob_get_level() > 0) {
        ob_end_clean();
    }
    Layout::plain($status === 500 ? 'Something went wrong' : $error->getMessage());
});

/** A text as HTML. The only way by which data comes into a page. */
function e(string|int|float|null $text): string
{
    return htmlspecialchars((string) $text, ENT_QUOTES | ENT_SUBSTITUTE | ENT_HTML5, 'UTF-8');
}

/** A text as part of a query string. */
function u(string|int|null $text): string
{
    return rawurlencode((string) $text);
}
