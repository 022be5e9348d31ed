<?php
declare(strict_types=1);

namespace Olio;

/** What surrounds the content of each page. */
final class Layout
{
    private const SCRIPTS = ['prototype', 'effects', 'dragdrop', 'controls'];

    /** @param list<string> $scripts further ones, by name */
    public static function begin(string $title, array $scripts = []): void
    {
        Session::open();
        header('Content-Type: text/html; charset=utf-8');
        header('Cache-Control: private, no-cache');
        self::head($title, $scripts);
        self::navigation();
        echo '<div id="columns"><div id="main">';
    }

    /** Ends the main column and prints the side column. */
    public static function side(): void
    {
        echo '</div><div id="side">';
        if (Session::userId() === null) {
            self::loginBox();
        }
    }

    public static function end(): void
    {
        echo '</div></div><div id="footer">A workload of emulab: people, events and tags. <a href="feed.php">RSS</a></div></body></html>';
    }

    public static function loginBox(string $message = ''): void
    {
        echo '<div class="box"><h2>Log in</h2>', $message === '' ? '' : '<p class="message">' . e($message) . '</p>',
            '<form method="post" action="login.php"><p><label>Username<br><input type="text" name="user_name"></label></p>',
            '<p><label>Password<br><input type="password" name="password"></label></p>',
            '<p><input type="submit" name="submit" value="Login"> <a href="addPerson.php">Sign up</a></p></form></div>';
    }

    /** A page with one sentence, for errors. Needs neither session nor database. */
    public static function plain(string $message): void
    {
        header('Content-Type: text/html; charset=utf-8');
        self::head('Olio', []);
        echo '<div id="columns"><p class="message">', e($message), '</p></div></body></html>';
    }

    /** @param list<string> $scripts */
    private static function head(string $title, array $scripts): void
    {
        echo '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
            '<title>', e($title), ' – Olio</title><link rel="stylesheet" href="css/scaffold.css"><link rel="stylesheet" href="css/site.css">',
            '<link rel="icon" href="images/star_on.png"><link rel="alternate" type="application/rss+xml" title="Newest events" href="feed.php">';
        foreach ([...self::SCRIPTS, ...$scripts] as $script) {
            echo '<script defer src="js/', $script, '.js"></script>';
        }
        echo '</head><body><div id="header"><h1><a href="index.php">Olio</a></h1><span>what happens near you</span></div>';
    }

    private static function navigation(): void
    {
        $name = Session::userName();
        echo '<div id="nav"><a href="index.php">Home</a><a href="addEvent.php">Add event</a>';
        if ($name === null) {
            echo '<a href="addPerson.php">Sign up</a>';
        } else {
            echo '<a href="users.php?username=', u($name), '">My profile</a><a href="friends.php">Friends</a>',
                '<a href="upcomingEvents.php">My events</a><a href="postedEvents.php">Posted</a><a href="logout.php">Log out</a>';
        }
        echo '<a href="findUsers.php">Find people</a><a href="feed.php"><img alt="RSS" src="images/RSS-icon-large.gif" height="14" width="14" /></a>';
        echo $name === null ? '' : '<span class="who">Hello, <b>' . e($name) . '</b></span>', '</div>';
    }
}
