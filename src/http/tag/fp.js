// The conversion pixel's tag: each load of it sends `window.fb_param` once, in the old parameters and order.
//
// Two snippets on a page write the same global, and the second may be there before the first one's script has come. So a
// load answers for all scripts that are on the page by then: the global is the last snippet's, and the others' pixels
// are read from their <noscript> images.
var base = home('/fp.js'), url = base + '/offsite_event.php', data = w.fb_param, loads = 0, q, id;

function every(name, act) {
  for (var all = d.getElementsByTagName(name), i = 0; i < all.length; i++) act(all[i]);
}

function mark(s) {
  if (s && !s.pg && before(s, '/fp.js')) loads += s.pg = 1;
}

if (base) {
  if (!page) start(base);
  mark(d.currentScript);
  every('script', mark);
  if (loads && data && data.pixel_id) {
    q = 'id=' + enc(data.pixel_id);
    if (data.value) q += '&value=' + enc(data.value);
    if (data.currency) q += '&currency=' + enc(data.currency);
    q += form(data.cd, {});
    if (data.event_id) q += '&eid=' + enc(data.event_id);
    page.sent[data.pixel_id] = 1;
    page.send(url, q + '&pg=fp1');
  }
  if (loads > 1) every('noscript', function (s) {
    q = (s.textContent.split(url.replace(/^\w+:/, '') + '?')[1] || '').split(/["'\s>]/)[0].replace(/&amp;/g, '&');
    id = /\bid=(\d+)/.exec(q);
    if (loads > 1 && id && !page.sent[id[1]]) {
      loads--;
      page.sent[id[1]] = 1;
      page.send(url, q + '&pg=fp1');
    }
  });
}
