/* Months of the calendar turn without loading the page; joining and leaving an event replaces the list of attendees. */
document.addEventListener('click', function (event) {
  var link = event.target.closest ? event.target.closest('a[data-replace]') : null;
  if (link) {
    event.preventDefault();
    replaceBy(link.getAttribute('data-replace'), link.getAttribute('href'));
  }
});
