<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\{Layout, Views};

Layout::begin('Sign up', ['validateform']);
echo '<div class="box"><h2>Sign up</h2><form class="wide" method="post" action="addPersonResult.php" enctype="multipart/form-data">';
Views::field('User name', 'add_user_name');
Views::field('Password', 'psword', 'password');
Views::field('Password again', 'passwordx', 'password');
foreach (['first_name' => 'First name', 'last_name' => 'Last name', 'email' => 'E-mail'] as $name => $label) {
    Views::field($label, $name);
}
Views::addressFields();
Views::field('Telephone', 'telephone');
Views::field('Time zone', 'timezone');
Views::field('Picture (JPEG)', 'user_image', 'file');
echo '<p><label for="summary">About you</label><textarea id="summary" name="summary" rows="6" maxlength="2500"></textarea></p>',
    '<p><span></span><span><input type="submit" name="addpersonsubmit" value="Create"></span></p></form></div>';
Layout::side();
Layout::end();
