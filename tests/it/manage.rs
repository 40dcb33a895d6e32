//! Management in `local` mode from outside: changing and archiving pixels, tokens, many at once, a fleet behind it.

use std::sync::Barrier;
use std::thread;

use super::desk::{Desk, FORM, JSON, accepted, event, fault, refused, value};
use super::gateway::{PIXEL, Site, until};

#[test]
fn wrong_changes_say_what_is_wrong() {
    let site = Site::new("");
    let gateway = site.start();
    let desk = Desk::first(&site);
    let id = desk.create("one");
    desk.create("two");
    let target = format!("/offsitepixels/{id}");
    for (form, expected) in [
        ("", "400 missing_parameter -"),
        ("colour=red", "400 missing_parameter -"),
        ("fb_ad_account_id=9", "400 missing_parameter -"),
        ("name=", "400 missing_parameter name"),
        ("name=+", "400 missing_parameter name"),
        ("tag=", "400 missing_parameter tag"),
        ("tag=SALE", "400 invalid_parameter tag"),
        ("tag=checkout", "400 invalid_parameter tag"),
        ("archived=yes", "400 invalid_parameter archived"),
        ("archived=", "400 invalid_parameter archived"),
        ("name=x&fb_ad_account_id=8", "400 invalid_parameter fb_ad_account_id"),
        ("name=%FF", "400 malformed_body -"),
        ("name=two", "409 name_taken name"),
        (&format!("name={}", "e".repeat(256)), "400 invalid_parameter name"),
        (&format!("name={}", "e".repeat(70_000)), "413 body_too_large -"),
    ] {
        assert_eq!(fault(&desk.put(&id, form)), expected, "{form:.80}");
    }
    for (kind, body, expected) in [
        (JSON, "[]", "400 malformed_body -"),
        (JSON, r#"{"name":["x"]}"#, "400 invalid_parameter name"),
        (JSON, r#"{"archived":[]}"#, "400 invalid_parameter archived"),
        (JSON, r#"{"name":null}"#, "400 missing_parameter -"),
        ("text/plain", "name=x", "415 unsupported_media_type -"),
        ("multipart/form-data; boundary=x", "--x--", "415 unsupported_media_type -"),
    ] {
        let reply = desk.send("PUT", &target, &[&format!("Content-Type: {kind}")], body);
        assert_eq!(fault(&reply), expected, "{kind} {body}");
    }
    let packed = [&format!("Content-Type: {FORM}")[..], "Content-Encoding: gzip"];
    assert_eq!(fault(&desk.send("PUT", &target, &packed, "name=x")), "415 unsupported_media_type -");
    assert_eq!(desk.names("&archived=any"), ["one", "two"]);
    assert_eq!(desk.single(&id)["tag"], "lead");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn changes_that_are_not_for_this_token_or_pixel() {
    let site = Site::new("");
    let gateway = site.start();
    let desk = Desk::first(&site);
    let id = desk.create("one");
    let target = format!("/offsitepixels/{id}");
    let reader = Desk::made(&site, &["--name", "r", "--read-only"]);
    let foreign = Desk::made(&site, &["--name", "f", "--ad-account", "8"]);
    let wrong = Desk { token: "wrong".into(), ..desk.clone() };
    for (desk, one, other) in [
        (&wrong, "401 invalid_token -", "401 invalid_token -"),
        (&reader, "403 read_only_token -", "403 read_only_token -"),
        (&foreign, "403 account_not_allowed -", "404 unknown_pixel -"),
    ] {
        for (id, expected) in [(&*id, one), ("6010000000099", other), ("0", other), ("x", other)] {
            assert_eq!(fault(&desk.put(id, "name=x")), expected, "PUT {id}");
            assert_eq!(fault(&desk.delete(id)), expected, "DELETE {id}");
        }
    }
    assert_eq!(fault(&desk.put(PIXEL, "name=x")), "403 static_pixel -", "the next start would undo it");
    assert_eq!(fault(&desk.delete(PIXEL)), "403 static_pixel -");
    for (method, target, allow) in [
        ("PATCH", &*target, "GET, HEAD, PUT, DELETE, OPTIONS"),
        ("POST", &target, "GET, HEAD, PUT, DELETE, OPTIONS"),
        ("PUT", "/offsitepixels", "GET, HEAD, POST, OPTIONS"),
        ("DELETE", "/offsitepixels", "GET, HEAD, POST, OPTIONS"),
    ] {
        let reply = desk.send(method, target, &[], "");
        assert_eq!(fault(&reply), "405 method_not_allowed -", "{method}");
        assert_eq!(reply.header("allow"), Some(allow), "{method}");
    }
    let reply = desk.get("/offsitepixels?fb_ad_account_id=9&archived=1");
    assert_eq!(fault(&reply), "400 invalid_parameter archived");
    assert!(accepted(&site, &id));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_pixel_is_renamed_and_retagged() {
    let site = Site::new("");
    let gateway = site.start();
    let desk = Desk::first(&site);
    let (id, _) = (desk.create("one"), desk.create("two"));
    let reply = desk.put(&id, "name=Sch%C3%B6n+%26+gut");
    assert_eq!(reply.status, 200);
    assert_eq!(value(&reply), desk.single(&id), "it shows what there is now");
    let shown = value(&reply);
    assert_eq!((&shown["name"], &shown["tag"]), (&"Schön & gut".into(), &"lead".into()), "what is left out stays");
    assert!(shown["js_pixel"].as_str().unwrap().starts_with("<!-- Facebook Conversion Code for Schön & gut -->"));
    assert!(shown.get("archived").is_none());
    let kind = [&format!("Content-Type: {JSON}")[..]];
    let reply = desk.send("PUT", &format!("/offsitepixels/{id}"), &kind, r#"{"tag":"CHECKOUT","fb_ad_account_id":9}"#);
    assert_eq!((reply.status, &value(&reply)["tag"]), (200, &"checkout".into()));
    assert_eq!(desk.names(""), ["Schön & gut", "two"], "in its place");
    desk.create("one");
    assert!(accepted(&site, &id));
    assert_eq!(gateway.stop(), Some(0));
    let exported = String::from_utf8(site.run(&["journal", "export"]).stdout).unwrap();
    assert!(exported.contains(r#""pixel_name":"Schön & gut","pixel_tag":"checkout""#), "{exported}");

    let gateway = site.start();
    assert_eq!(desk.names(""), ["Schön & gut", "two", "one"]);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn an_archived_pixel_refuses_events_until_it_is_restored() {
    let site = Site::new("");
    let gateway = site.start();
    let desk = Desk::first(&site);
    let (id, _) = (desk.create("one"), desk.create("two"));
    assert!(accepted(&site, &id));
    let live = desk.get(&format!("/offsitepixels/{id}")).body;
    let reply = desk.delete(&id);
    assert_eq!((reply.status, reply.header("cache-control"), reply.header("etag")), (204, Some("no-cache"), None));
    assert!(reply.header("x-request-id").is_some() && reply.header("allow").is_none() && reply.body.is_empty());
    assert_eq!(event(&site, &id), (404, Some("archived_pixel".into())), "in the next request");
    assert_eq!(desk.delete(&id).status, 204, "once more changes nothing");
    let shown = String::from_utf8(desk.get(&format!("/offsitepixels/{id}")).body).unwrap();
    assert_eq!(shown, String::from_utf8(live).unwrap().replace("\"}", "\",\"archived\":true}"), "it stays readable");
    for (query, names) in [
        ("", &["two"][..]),
        ("&archived=false", &["two"]),
        ("&archived=true", &["one"]),
        ("&archived=any", &["one", "two"]),
    ] {
        assert_eq!(desk.names(query), names, "{query}");
    }
    assert_eq!(gateway.metric("events_total{outcome=\"rejected\",reason=\"archived_pixel\"}"), Some(1.0));
    assert_eq!(gateway.stop(), Some(0));
    let rejected = String::from_utf8(site.run(&["journal", "export", "--kind", "rejected"]).stdout).unwrap();
    assert!(rejected.contains(r#""reason":"archived_pixel""#) && rejected.contains(&id), "{rejected}");

    let gateway = site.start();
    assert!(refused(&site, &id, "archived_pixel"), "after a restart, too");
    let other = desk.create("one");
    assert_eq!(fault(&desk.put(&id, "archived=false")), "409 name_taken name", "its name was free to be taken");
    assert_eq!(desk.put(&id, "name=uno").status, 200, "it can be changed");
    assert!(refused(&site, &id, "archived_pixel") && accepted(&site, &other));
    let reply = desk.put(&id, "archived=false&tag=OTHER");
    let pixel = value(&reply);
    assert_eq!((reply.status, &pixel["tag"], pixel.get("archived")), (200, &"other".into(), None));
    assert!(accepted(&site, &id));
    assert_eq!(desk.names(""), ["uno", "two", "one"]);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn of_many_who_want_one_name_one_gets_it() {
    const MANY: usize = 16;
    let site = Site::new("");
    let gateway = site.start();
    let desk = Desk::first(&site);
    let at_once = |what: &(dyn Fn(usize) -> u16 + Sync)| {
        let barrier = Barrier::new(MANY);
        let run = |number| {
            barrier.wait();
            what(number)
        };
        let run = &run;
        let mut statuses: Vec<u16> = thread::scope(|scope| {
            let threads: Vec<_> = (0..MANY).map(|number| scope.spawn(move || run(number))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        statuses.sort_unstable();
        statuses
    };
    let one_wins = [&[200][..], &[409; MANY - 1]].concat();
    let ids: Vec<String> = (0..MANY).map(|number| desk.create(&format!("other{number}"))).collect();
    for round in 0..5 {
        let form = format!("fb_ad_account_id=9&name=new{round}&tag=OTHER");
        let created = at_once(&|_| desk.form("POST", "/offsitepixels", &form).status);
        assert_eq!(created, one_wins, "creations of one name");
        let form = format!("name=name{round}");
        let renamed = at_once(&|number| desk.put(&ids[number], &form).status);
        assert_eq!(renamed, one_wins, "renamings to one name");
    }
    let names = desk.names("");
    let mut distinct = names.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!((names.len(), distinct.len()), (MANY + 5, MANY + 5), "{names:?}");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_fleet_learns_what_is_archived() {
    let authority = Site::new("");
    let serving = authority.start();
    let desk = Desk::first(&authority);
    let follow = || {
        let site = Site::new("");
        let upstream = format!(
            "[registry]\nmode = \"proxy\"\nupstream = \"http://{}\"\nupstream_token = \"{}\"\nad_accounts = [\"9\"]\n\
             sync_interval = \"1s\"\ngrace = \"0s\"\n",
            authority.public, desk.token
        );
        site.reconfigure("[registry]\n", &upstream);
        site
    };
    let (one, two) = (follow(), follow());
    let gateways = (one.start(), two.start());
    let through = desk.at(&one);
    let id = through.create("one");
    assert!(accepted(&one, &id));
    until("the other gateway's sync", || accepted(&two, &id));
    let reply = through.delete(&id);
    assert_eq!((reply.status, reply.header("cache-control")), (204, Some("no-cache")));
    // At once where it was asked for, unless a list of the moment before was still on its way.
    until("it is archived", || refused(&one, &id, "archived_pixel"));
    until("the other gateway's sync", || refused(&two, &id, "archived_pixel"));
    assert!(through.names("").is_empty(), "who asks for a list is not shown what the gateways are");

    assert_eq!(through.put(&id, "archived=false&name=uno").status, 200);
    until("it is back", || accepted(&one, &id));
    until("the other gateway's sync", || accepted(&two, &id));
    assert_eq!(desk.delete(&id).status, 204);
    until("both syncs", || refused(&one, &id, "archived_pixel") && refused(&two, &id, "archived_pixel"));
    serving.kill();
    let (first, second) = gateways;
    first.kill();
    let first = one.start();
    assert!(refused(&one, &id, "archived_pixel"), "kept over a restart without the authority");
    assert_eq!((first.stop(), second.stop()), (Some(0), Some(0)));
    let exported = String::from_utf8(two.run(&["journal", "export"]).stdout).unwrap();
    assert!(exported.contains(r#""pixel_name":"uno""#), "{exported}");
}
