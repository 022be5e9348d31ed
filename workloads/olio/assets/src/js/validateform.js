/* Passwords must be equal, and a user name must be free, before a form is sent. */
document.addEventListener('submit', function (event) {
  var form = event.target;
  if (form.psword && form.psword.value !== form.passwordx.value) {
    event.preventDefault();
    alert('The two passwords differ.');
  }
});
document.addEventListener('change', function (event) {
  if (event.target.name === 'add_user_name') {
    request('GET', 'checkUser.php?username=' + encodeURIComponent(event.target.value), null, function (text) {
      event.target.setCustomValidity(text.trim() === 'taken' ? 'This name is taken.' : '');
    });
  }
});
