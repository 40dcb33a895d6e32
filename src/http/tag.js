/* pixelgate tag: sends window.fb_param once, as the page's conversion, to the host this file came from. */
(function (w, d) {
  var p = w.fb_param;
  if (!p || !p.pixel_id) return;
  var self = d.currentScript, scripts = d.getElementsByTagName('script'), i, k, v, q, enc = encodeURIComponent;
  for (i = scripts.length - 1; !self && i >= 0; i--) if (/\/fp\.js(\?|$)/.test(scripts[i].src)) self = scripts[i];
  var host = self && /^https?:\/\/[^\/]+/.exec(self.src);
  if (!host) return;
  q = 'id=' + enc(p.pixel_id);
  if (p.value) q += '&value=' + enc(p.value);
  if (p.currency) q += '&currency=' + enc(p.currency);
  for (k in p.cd || {}) {
    if (!Object.prototype.hasOwnProperty.call(p.cd, k)) continue;
    v = p.cd[k];
    if (v === null || v === undefined || typeof v === 'function') continue;
    q += '&cd[' + enc(k) + ']=' + enc(typeof v === 'object' ? JSON.stringify(v) : v);
  }
  new Image().src = host[0] + '/offsite_event.php?' + q + '&pg=fp1';
})(window, document);
