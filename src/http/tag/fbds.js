// The tag of `_fbq`: addPixelId, and track of a name, for all pixels, or of a conversion pixel's digits, once.
var base = home('/fbds.js'), queue = w._fbq || [], ids = [];

function run(s) {
  function tell(id) {
    page.send(base + '/tr/', 'ev=' + enc(s[1]) + '&id=' + enc(id) + form(s[2], {}) + '&if=' + (w.top !== w));
  }
  if (s[0] == 'addPixelId' && ids.indexOf(s[1] + '') < 0) ids.push(s[1] + '');
  if (s[0] == 'track' && /^\d+$/.test(s[1])) tell('null');
  else if (s[0] == 'track') ids.forEach(tell);
}

if (base && !queue.tag) {
  if (!page) start(base);
  if (w._fbds) run(['addPixelId', w._fbds.pixelId]);
  w._fbq = {tag: 1, loaded: true, push: function () { [].forEach.call(arguments, run); }};
  queue.forEach(run);
}
