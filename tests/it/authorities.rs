//! `registry.database`: several authorities on one PostgreSQL, and what is left of them when it is away.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::Value;

use super::client::Client;
use super::desk::{Desk, accepted, event, fault, refused, value};
use super::forward_tls::identity;
use super::gateway::{Gateway, PIXEL, Site, until};
use super::postgres::{PASSWORD, Postgres};

/// An authority on a database. It has a static pixel of its own, too.
fn authority(url: &str) -> Site {
    let site = Site::new("");
    site.reconfigure("[registry]\n", &format!("[registry]\ndatabase = \"{url}\"\n"));
    site
}

fn unchecked(site: &Site, id: &str) -> bool {
    event(site, id) == (200, Some("pixel_not_checked".into()))
}

/// Stops a gateway, after a look at what it said.
fn end(site: &Site, gateway: Gateway<'_>) {
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    assert!(!site.log().contains(PASSWORD), "{}", site.log());
}

const UNKNOWN: &str = "6099999999999";

#[test]
fn what_one_authority_does_the_others_know() {
    let server = Postgres::start();
    let (one, two) = (authority(&server.url()), authority(&server.url()));
    let (first, second) = (one.start(), two.start());
    let here = Desk::first(&one);
    assert!(!two.data().join("management-token").exists(), "the first token is made once, and the first has it");
    let there = here.at(&two);
    let id = here.create("one");
    assert_eq!(there.single(&id)["name"], "one", "management asks the database: at once");
    assert!(accepted(&one, &id));
    let by_events = here.create("by events");
    until("events follow", || accepted(&two, &by_events));
    let reply = there.form("POST", "/offsitepixels", "fb_ad_account_id=9&name=one&tag=LEAD");
    assert_eq!(fault(&reply), "409 name_taken name");

    let other = there.create("two");
    assert_eq!(here.put(&other, "name=zwei&tag=OTHER").status, 200);
    assert_eq!(there.delete(&id).status, 204);
    assert!(refused(&two, &id, "archived_pixel"), "at once where it was asked for");
    until("events follow", || refused(&one, &id, "archived_pixel"));
    assert_eq!(fault(&there.put(&id, "archived=false&name=zwei")), "409 name_taken name");
    assert_eq!(here.create_in("9", "one").len(), 13, "an archived pixel leaves its name");
    for query in ["", "&archived=true", "&archived=any"] {
        let target = format!("/offsitepixels?fb_ad_account_id=9{query}");
        let (left, right) = (here.get(&target), there.get(&target));
        assert_eq!((left.status, right.status), (200, 200));
        let without_status =
            |body: &[u8]| String::from_utf8(body.to_vec()).unwrap().replace("\"Active\"", "\"Unverified\"");
        let hosts = |text: String, site: &Site| text.replace(&site.public.to_string(), "host");
        assert_eq!(hosts(without_status(&left.body), &one), hosts(without_status(&right.body), &two), "{query}");
    }
    assert_eq!(here.names("&archived=any"), ["one", "by events", "zwei", "one"], "in order of creation");

    // Tokens are shared, and what is revoked is revoked everywhere, at the next request.
    let jo = Desk::made(&two, &["--name", "Jo", "--ad-account", "9"]);
    assert_eq!((jo.get("/offsitepixels?fb_ad_account_id=9").status, jo.at(&one).names("").len()), (200, 3));
    assert_eq!(fault(&jo.at(&one).get("/offsitepixels?fb_ad_account_id=8")), "403 account_not_allowed -");
    assert_eq!(two.run(&["token", "create", "--name", "Jo"]).status.code(), Some(1), "names of those in force differ");
    assert!(one.run(&["token", "revoke", "Jo"]).status.success());
    assert_eq!(fault(&jo.get("/offsitepixels?fb_ad_account_id=9")), "401 invalid_token -");
    let listed = |site: &Site| String::from_utf8(site.run(&["token", "list"]).stdout).unwrap();
    assert!(listed(&one) == listed(&two) && listed(&one).lines().count() == 3, "{}", listed(&one));

    let audit = |site: &Site| -> Vec<Value> {
        let output = site.run(&["registry", "audit"]);
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let lines = audit(&one);
    assert_eq!(lines, audit(&two));
    let actions: Vec<&str> = lines.iter().map(|line| line["action"].as_str().unwrap()).collect();
    let (made, new) = ("token.created", "pixel.created");
    assert_eq!(actions, [made, new, new, new, "pixel.changed", "pixel.archived", new, made, "token.revoked"]);
    assert_eq!((&lines[4]["old"]["name"], &lines[4]["new"]["name"]), (&"two".into(), &"zwei".into()));
    assert_eq!(one.run(&["registry", "backup", "x"]).status.code(), Some(1), "pg_dump does that");
    end(&one, first);
    end(&two, second);
}

#[test]
fn of_many_at_many_authorities_one_gets_a_name() {
    const MANY: usize = 12;
    let server = Postgres::start();
    let (one, two) = (authority(&server.url()), authority(&server.url()));
    let (first, second) = (one.start(), two.start());
    let here = Desk::first(&one);
    let desks = [here.clone(), here.at(&two)];
    let ids: Vec<String> = (0..MANY).map(|number| desks[number % 2].create(&format!("other{number}"))).collect();
    for round in 0..5 {
        let at_once = |what: &(dyn Fn(&Desk, usize) -> u16 + Sync)| {
            let barrier = Barrier::new(MANY);
            let (barrier, desks) = (&barrier, &desks);
            let mut statuses: Vec<u16> = thread::scope(|scope| {
                let run = |number: usize| {
                    scope.spawn(move || {
                        barrier.wait();
                        what(&desks[number % 2], number)
                    })
                };
                let threads: Vec<_> = (0..MANY).map(run).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            statuses.sort_unstable();
            statuses
        };
        let one_wins = [&[200][..], &[409; MANY - 1]].concat();
        let form = format!("fb_ad_account_id=9&name=new{round}&tag=OTHER");
        assert_eq!(at_once(&|desk, _| desk.form("POST", "/offsitepixels", &form).status), one_wins);
        let form = format!("name=name{round}");
        assert_eq!(at_once(&|desk, number| desk.put(&ids[number], &form).status), one_wins);
    }
    assert_eq!(desks[0].names(""), desks[1].names(""));
    end(&one, first);
    end(&two, second);
}

/// Management says that it can't be used, in the error shape, with a time to come again.
fn is_away(desk: &Desk, id: &str) {
    for reply in [
        desk.get("/offsitepixels?fb_ad_account_id=9"),
        desk.get(&format!("/offsitepixels/{id}")),
        desk.form("POST", "/offsitepixels", "fb_ad_account_id=9&name=away&tag=LEAD"),
        desk.put(id, "name=away"),
        desk.delete(id),
    ] {
        assert_eq!(fault(&reply), "503 registry_unavailable -");
        assert_eq!(reply.header("retry-after"), Some("5"));
        assert!(!String::from_utf8_lossy(&reply.body).contains(PASSWORD));
    }
}

#[test]
fn without_the_database_events_go_on_and_none_is_lost() {
    let mut server = Postgres::start();
    let (one, two) = (authority(&server.url()), authority(&server.url()));
    let (first, second) = (one.start(), two.start());
    let desk = Desk::first(&one);
    let (live, archived) = (desk.create("live"), desk.create("archived"));
    assert_eq!(desk.delete(&archived).status, 204);
    until("events follow", || accepted(&two, &live) && refused(&two, &archived, "archived_pixel"));
    until("the copy is fresh", || refused(&one, UNKNOWN, "unknown_pixel"));

    server.stop();
    is_away(&desk, &live);
    for site in [&one, &two] {
        assert!(accepted(site, &live) && refused(site, &archived, "archived_pixel") && accepted(site, PIXEL));
        until("the copy is too old to call an id unknown", || unchecked(site, UNKNOWN));
        assert_eq!(Client::connect(site.ops).unwrap().get("/readyz").unwrap().status, 200, "events are what counts");
    }
    assert_eq!(one.run(&["token", "create", "--name", "x"]).status.code(), Some(1));
    assert!(first.metric("registry_sync_errors_total").unwrap() > 0.0);
    assert!(first.metric("registry_last_sync_timestamp_seconds").unwrap() > 1.7e9);
    let checked = String::from_utf8(one.run(&["check"]).stdout).unwrap();
    assert!(checked.contains("warning: registry.database: ") && !checked.contains(PASSWORD), "{checked}");
    end(&one, first);
    second.kill();

    // A start without it, from the copy; and one that never saw it.
    let (first, second) = (one.start(), two.start());
    let fresh = authority(&server.url());
    let third = fresh.start();
    for site in [&one, &two] {
        assert!(accepted(site, &live) && refused(site, &archived, "archived_pixel") && unchecked(site, UNKNOWN));
    }
    assert!(unchecked(&fresh, &live) && unchecked(&fresh, UNKNOWN) && accepted(&fresh, PIXEL));
    is_away(&desk, &live);

    server.restart();
    for site in [&one, &two, &fresh] {
        until("the database is back", || refused(site, UNKNOWN, "unknown_pixel"));
        assert!(accepted(site, &live) && refused(site, &archived, "archived_pixel"));
    }
    assert_eq!(desk.at(&fresh).names(""), ["live"]);
    assert_eq!(desk.put(&archived, "archived=false").status, 200);
    until("events follow", || accepted(&fresh, &archived));
    for (site, gateway) in [(&one, first), (&two, second), (&fresh, third)] {
        end(site, gateway);
    }
    let last = String::from_utf8(fresh.run(&["journal", "tail"]).stdout).unwrap();
    assert!(last.contains("pixel_not_checked") && last.contains(&live), "{last}");
}

#[test]
fn a_frozen_database_stops_no_event() {
    let server = Postgres::start();
    let site = authority(&server.url());
    let gateway = site.start();
    let desk = Desk::first(&site);
    let live = desk.create("live");
    server.freeze(true);
    let asked = thread::scope(|scope| {
        let asked = scope.spawn(|| desk.get(&format!("/offsitepixels/{live}")));
        let mut events = 0;
        while !asked.is_finished() {
            assert!(accepted(&site, &live));
            events += 1;
        }
        assert!(events > 0);
        asked.join().unwrap()
    });
    assert_eq!(fault(&asked), "503 registry_unavailable -");
    until("the copy is too old to call an id unknown", || unchecked(&site, UNKNOWN));
    server.freeze(false);
    until("the database is back", || refused(&site, UNKNOWN, "unknown_pixel"));
    assert_eq!(desk.names(""), ["live"]);
    // Nor a stop, nor a start.
    server.freeze(true);
    end(&site, gateway);
    let gateway = site.start();
    assert!(accepted(&site, &live) && unchecked(&site, UNKNOWN));
    server.freeze(false);
    until("the database is back", || refused(&site, UNKNOWN, "unknown_pixel"));
    end(&site, gateway);
}

#[test]
fn what_was_answered_survives_the_database_s_crash() {
    let mut server = Postgres::start();
    let (one, two) = (authority(&server.url()), authority(&server.url()));
    let (first, second) = (one.start(), two.start());
    let here = Desk::first(&one);
    let desks = [here.clone(), here.at(&two)];
    let done = AtomicBool::new(false);
    let created: Vec<String> = thread::scope(|scope| {
        let run = |desk: &'_ Desk, who: usize| {
            let (desk, done) = (desk.clone(), &done);
            scope.spawn(move || {
                let mut names = Vec::new();
                for number in 0.. {
                    let name = format!("n{who}-{number}");
                    let form = format!("fb_ad_account_id=9&name={name}&tag=LEAD");
                    let reply = desk.form("POST", "/offsitepixels", &form);
                    match reply.status {
                        200 => names.push(name),
                        503 => {}
                        _ => panic!("{reply:?}"),
                    }
                    if done.load(Ordering::Acquire) {
                        break;
                    }
                }
                names
            })
        };
        let threads: Vec<_> = (0..4).map(|who| run(&desks[who % 2], who)).collect();
        for round in 1..=3 {
            until("some are created", || {
                server.sql("postgres", "SELECT count(*) FROM pixels").parse::<usize>().unwrap() >= round * 30
            });
            server.stop();
            server.restart();
        }
        done.store(true, Ordering::Release);
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(created.len() >= 60, "{}", created.len());
    until("both are back", || desks.iter().all(|desk| desk.get("/offsitepixels?fb_ad_account_id=9").status == 200));
    let names = [desks[0].names(""), desks[1].names("")];
    assert_eq!(names[0], names[1]);
    for name in &created {
        assert_eq!(names[0].iter().filter(|known| *known == name).count(), 1, "{name}");
    }
    let rows = server.sql("postgres", "SELECT count(*) FROM audit WHERE action = 'pixel.created'");
    assert_eq!(rows, names[0].len().to_string(), "each with its row");
    end(&one, first);
    end(&two, second);
}

#[test]
fn a_registry_that_was_a_file_moves_into_an_empty_database() {
    let server = Postgres::start();
    let site = Site::new("");
    let gateway = site.start();
    let desk = Desk::first(&site);
    let (live, archived) = (desk.create("live%00%5C0%5C"), desk.create("archived"));
    assert_eq!(desk.delete(&archived).status, 204);
    let jo = Desk::made(&site, &["--name", "Jo"]);
    assert!(site.run(&["token", "revoke", "Jo"]).status.success());
    assert!(accepted(&site, &live));
    let before = desk.get("/offsitepixels?fb_ad_account_id=9&archived=any").body;
    end(&site, gateway);

    site.reconfigure("[registry]\n", &format!("[registry]\ndatabase = \"{}\"\n", server.url()));
    let gateway = site.start();
    assert_eq!(desk.get("/offsitepixels?fb_ad_account_id=9&archived=any").body, before, "with status and creator");
    assert_eq!(fault(&jo.get("/offsitepixels?fb_ad_account_id=9")), "401 invalid_token -");
    let other = authority(&server.url());
    let second = other.start();
    assert_eq!(desk.at(&other).names("&archived=any"), ["live\0\\0\\", "archived"]);
    assert_eq!(desk.at(&other).single(&live)["status"], "Active", "others' events are known");
    let renamed = desk.at(&other).put(&live, "name=a%00b%5C");
    assert_eq!(value(&renamed)["name"], "a\0b\\");
    end(&other, second);
    end(&site, gateway);

    // A directory with pixels of its own meets a database that is in use: nothing is mixed, nothing forgotten.
    let stranger = Site::new("");
    let gateway = stranger.start();
    let own = Desk::first(&stranger).create("own");
    end(&stranger, gateway);
    stranger.reconfigure("[registry]\n", &format!("[registry]\ndatabase = \"{}\"\n", server.url()));
    let gateway = stranger.start();
    assert!(accepted(&stranger, &own) && accepted(&stranger, &live) && refused(&stranger, &archived, "archived_pixel"));
    assert!(stranger.log().contains("registry.database has pixels already"), "{}", stranger.log());
    end(&stranger, gateway);
}

#[test]
fn a_dump_that_is_restored_has_pixels_tokens_and_the_audit_log() {
    let server = Postgres::start();
    server.sql("postgres", "CREATE DATABASE one");
    let (site, other) = (authority(&server.url_of("127.0.0.1", "one")), authority(&server.url_of("127.0.0.1", "two")));
    let gateway = site.start();
    let desk = Desk::first(&site);
    let (live, archived) = (desk.create("live"), desk.create("archived"));
    assert_eq!(desk.delete(&archived).status, 204);
    server.sql("postgres", "CREATE DATABASE two");
    server.dump_and_restore("one", "two");
    let rows = |database| server.sql(database, "SELECT action, pixel_id FROM audit ORDER BY seq");
    assert_eq!(rows("two"), rows("one"));
    assert!(rows("two").contains("pixel.archived"), "{}", rows("two"));

    let second = other.start();
    assert_eq!(desk.at(&other).names("&archived=any"), ["live", "archived"]);
    assert!(accepted(&other, &live) && refused(&other, &archived, "archived_pixel"));
    let next = desk.at(&other).create("next");
    assert!(accepted(&other, &next), "ids go on behind the restored ones");
    end(&other, second);
    end(&site, gateway);
}

#[test]
fn a_database_that_was_put_back_makes_nothing_unknown() {
    let server = Postgres::start();
    server.sql("postgres", "CREATE DATABASE one");
    let (site, other) = (authority(&server.url_of("127.0.0.1", "one")), authority(&server.url_of("127.0.0.1", "two")));
    let gateway = site.start();
    let desk = Desk::first(&site);
    let before = desk.create("before");
    end(&site, gateway);
    server.sql("postgres", "CREATE DATABASE two TEMPLATE one");
    let gateway = site.start();
    let lost = desk.create("lost");
    end(&site, gateway);

    // The copy goes on, further than the original ever was, before the first gateway meets it.
    let second = other.start();
    let others: Vec<String> = (0..3).map(|number| desk.at(&other).create(&format!("other{number}"))).collect();
    site.reconfigure("/one", "/two");
    let gateway = site.start();
    for id in others.iter().chain([&before, &lost]) {
        assert!(accepted(&site, id), "{id}");
    }
    until("who never knew it can't", || refused(&other, &lost, "unknown_pixel"));
    assert_eq!(fault(&desk.put(&lost, "name=x")), "404 unknown_pixel -", "the database has the word");
    assert_eq!(desk.names("").len(), 5);
    end(&site, gateway);
    end(&other, second);
}

#[test]
fn the_url_is_a_secret_and_a_database_that_is_not_for_us_is_refused() {
    let server = Postgres::start();
    let site = authority(&server.url());
    let shown = String::from_utf8(site.run(&["config"]).stdout).unwrap();
    assert!(shown.contains("database = \"[redacted]\"") && !shown.contains(PASSWORD), "{shown}");
    let from_file = Site::new("");
    let file = from_file.data().with_file_name("url");
    fs::write(&file, format!("{}\n", server.url())).unwrap();
    let mut command = super::gateway::binary();
    command.args(["token", "list", "--config"]).arg(from_file.config());
    let output = command.env("PIXELGATE_REGISTRY__DATABASE_FILE", &file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    site.reconfigure("postgres://", "mysql://");
    let output = site.run(&["check"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.starts_with("registry.database: ") && !said.contains(PASSWORD), "{said}");
    site.reconfigure("mysql://", "postgres://");

    // Another program's tables, another encoding, a newer pixelgate's schema.
    server.sql("postgres", "CREATE DATABASE foreign_tables");
    server.sql("foreign_tables", "CREATE TABLE meta (x int)");
    server.sql("postgres", "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0");
    server.sql("postgres", "CREATE DATABASE newer TEMPLATE postgres");
    server.sql("newer", "UPDATE meta SET value = '99' WHERE key = 'schema_version'");
    for (database, word) in [("foreign_tables", "meta"), ("latin", "LATIN1"), ("nowhere", "does not exist")] {
        let site = authority(&server.url_of("127.0.0.1", database));
        let checked = String::from_utf8(site.run(&["check"]).stdout).unwrap();
        // Beside what it may say of this machine's disk.
        let said = checked.lines().find(|line| line.starts_with("warning: registry.database: "));
        assert!(said.is_some_and(|line| line.contains(word)), "{checked}");
        let gateway = site.start();
        assert!(unchecked(&site, UNKNOWN) && accepted(&site, PIXEL));
        end(&site, gateway);
    }
    let site = authority(&server.url_of("127.0.0.1", "newer"));
    assert_eq!((site.run(&["check"]).status.code(), site.run(&["serve"]).status.code()), (Some(2), Some(2)));
}

#[test]
fn tls_to_the_database_checks_the_certificate_and_its_name() {
    let authority = identity(None, None);
    let good = identity(Some("localhost"), Some(&authority));
    let server = Postgres::prepared(|root| {
        let key = root.join("server.key");
        fs::write(&key, good.key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let certificate = root.join("server.crt");
        fs::write(&certificate, good.certificate.to_pem().unwrap()).unwrap();
        let hba = root.join("hba.conf");
        fs::write(&hba, "hostssl all all 127.0.0.1/32 scram-sha-256\n").unwrap();
        let file = |name: &str, path: &Path| format!("{name}={}", path.display());
        let files = [("ssl_key_file", &key), ("ssl_cert_file", &certificate), ("hba_file", &hba)];
        files.iter().map(|(name, path)| file(name, path)).chain(["ssl=on".to_owned()]).collect()
    });
    let site = Site::new("");
    let (known, other) = (site.data().with_file_name("known.pem"), site.data().with_file_name("other.pem"));
    fs::write(&known, authority.certificate.to_pem().unwrap()).unwrap();
    fs::write(&other, identity(None, None).certificate.to_pem().unwrap()).unwrap();
    for (host, mode, authorities, word) in [
        ("localhost", "?sslmode=require", &known, None),
        ("localhost", "?sslmode=verify-full", &known, None),
        ("localhost", "?sslmode=prefer", &known, None),
        ("localhost", "?sslmode=require", &other, Some("certificate verify failed")),
        ("localhost", "?sslmode=prefer", &other, Some("certificate verify failed")),
        ("127.0.0.1", "?sslmode=require", &known, Some("certificate verify failed")),
        ("localhost", "?sslmode=disable", &known, Some("no encryption")),
        ("localhost", "", &known, Some("no encryption")),
    ] {
        let mut command = super::gateway::binary();
        command.args(["token", "list", "--config"]).arg(site.config()).env("SSL_CERT_FILE", authorities);
        let url = format!("{}{mode}", server.url_of(host, "postgres"));
        let output = command.env("PIXELGATE_REGISTRY__DATABASE", url).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(i32::from(word.is_some())), "{host} {mode}: {said}");
        assert!(word.is_none_or(|word| said.contains(word)), "{host} {mode}: {said}");
    }
}
