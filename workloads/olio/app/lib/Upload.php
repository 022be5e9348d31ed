<?php
declare(strict_types=1);

namespace Olio;

/** One uploaded file of a form, checked by its content rather than by the name or type that the client claims. */
final class Upload
{
    private const MAX_BYTES = 8 << 20;

    private function __construct(public readonly string $path)
    {
    }

    /** The uploaded JPEG, null if none was chosen. */
    public static function jpeg(string $field): ?self
    {
        return self::checked($field, "\xFF\xD8\xFF", 'The picture must be a JPEG.');
    }

    public static function pdf(string $field): ?self
    {
        return self::checked($field, '%PDF-', 'The literature must be a PDF.');
    }

    private static function checked(string $field, string $signature, string $complaint): ?self
    {
        $file = $_FILES[$field] ?? null;
        if (!is_array($file) || !is_int($file['error'] ?? null) || $file['error'] === UPLOAD_ERR_NO_FILE) {
            return null;
        }
        if ($file['error'] !== UPLOAD_ERR_OK || $file['size'] > self::MAX_BYTES) {
            throw new HttpError(400, 'The file could not be taken: it may have at most 8 MB.');
        }
        $start = file_get_contents($file['tmp_name'], false, null, 0, strlen($signature));
        if (!is_uploaded_file($file['tmp_name']) || $start !== $signature) {
            throw new HttpError(400, $complaint);
        }
        return new self($file['tmp_name']);
    }
}
