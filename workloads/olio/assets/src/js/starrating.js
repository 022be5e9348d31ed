/* Stars light up under the pointer and set the rating of a comment. */
document.addEventListener('click', function (event) {
  var value = event.target.getAttribute && event.target.getAttribute('data-star'), i;
  if (value) {
    $('rating').value = value;
    for (i = 1; i <= 5; i += 1) { $('star_' + i).src = 'images/star_' + (i <= value ? 'on' : 'off') + '.png'; }
  }
});
