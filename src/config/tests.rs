//! Whole configs: precedence, lists, environment, secrets, and that every problem is told at once.

use std::time::Duration;

use super::kind::Kind;
use super::*;

fn from(toml: &str, environment: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let mut source = Source::default();
    source.toml(toml);
    source.environment(environment.iter().map(|(name, value)| (name.into(), value.into())));
    let (words, problems) = Words::read(source);
    if problems.is_empty() { Ok(Config::build(words)) } else { Err(problems.iter().map(Problem::to_string).collect()) }
}

#[test]
fn every_problem_is_told_at_once() {
    let problems = from(
        "node_id = 'a b'\n[server]\nlisten = 'nowhere'\nworkers = 0\nbody_timeout = '10 parsecs'\nlisen = 1\n\
         [journal]\nmax_bytes = '1'\nacknowledge = 'maybe'\n[privacy]\nhonor_gpc = 'yes'\n[kafka]\nbrokers = 1\n",
        &[("PIXELGATE_LOG__LEVL", "info")],
    )
    .unwrap_err();
    assert_eq!(problems.len(), 10, "{problems:#?}");
    assert!(problems.iter().any(|line| line.starts_with("server.lisen: ") && line.contains("server.listen")));
    assert!(problems.iter().any(|line| line.starts_with("log.levl: ") && line.contains("PIXELGATE_LOG__LEVEL")));
    for line in &problems {
        assert!(line.contains("allowed") || line.contains("nearest"), "{line} says what is allowed");
    }
}

#[test]
fn the_environment_wins_over_the_file() {
    let config = from(
        "[journal]\nmax_bytes = '5GiB'\nretention = '1h'\n[[registry.pixels]]\nid = '42'\n",
        &[
            ("PIXELGATE_JOURNAL__MAX_BYTES", "2GiB"),
            ("PIXELGATE_DATA_DIR", "/d"),
            ("PIXELGATE_SERVICE_HOST", "1.2.3.4"),
            ("PIXELGATE_PORT_80_TCP", "x"),
            ("HOME", "/h"),
        ],
    )
    .unwrap();
    assert_eq!((config.journal.max_bytes, config.journal.retention), (2 << 30, Duration::from_secs(3600)));
    assert_eq!(config.data_dir, Path::new("/d"));
    assert_eq!(config.registry.pixels[0].id.to_string(), "42");
}

#[test]
fn a_variable_alone_makes_its_section() {
    let config = from("", &[("PIXELGATE_KAFKA__BROKERS", "a:1"), ("PIXELGATE_NODE_ID", "")]).unwrap();
    assert_eq!((config.kafka.brokers, config.node_id), (vec!["a:1".to_owned()], None));
}

#[test]
fn limits_are_tables_parts_or_off() {
    let rate = |count, seconds, burst| Some(limits::Rate { count, period: Duration::from_secs(seconds), burst });
    let limits = from("", &[]).unwrap().limits;
    let defaults = (rate(200, 1, 1000), None, rate(50, 1, 200));
    assert_eq!((limits.per_ip, limits.per_pixel, limits.management), defaults);
    assert_eq!(limits.mode, limits::Mode::Enforce);
    let file = "[limits]\nper_ip = 'off'\nper_pixel = { rate = '6/m', burst = 7 }\nmode = 'observe'\n";
    let limits = from(file, &[("PIXELGATE_LIMITS__MANAGEMENT__RATE", "1/h")]).unwrap().limits;
    assert_eq!((limits.per_ip, limits.per_pixel, limits.management), (None, rate(6, 60, 7), rate(1, 3600, 200)));
    assert_eq!(limits.mode, limits::Mode::Observe);
    let variables = [("PIXELGATE_LIMITS__PER_IP__RATE", "5/s"), ("PIXELGATE_LIMITS__PER_IP__BURST", "9")];
    assert_eq!(from(file, &variables).unwrap().limits.per_ip, rate(5, 1, 9));
    for bad in ["'often'", "{ rate = '5/d', burst = 1 }", "{ rate = '5/s', bursts = 1 }", "5"] {
        let problems = from(&format!("[limits]\nper_ip = {bad}\n"), &[]).unwrap_err();
        assert!(problems[0].starts_with("limits.per_ip: ") && problems[0].contains("200/s"), "{problems:?}");
    }
}

#[test]
fn nobody_asked_for_proxies_is_not_the_same_as_none() {
    let proxies = |text: &str, environment| {
        let config = from(text, environment).unwrap();
        config.server.trusted_proxies.map(|nets| nets.iter().map(IpNet::to_string).collect::<Vec<_>>())
    };
    let nets = |nets: &[&str]| Some(nets.iter().map(|net| net.to_string()).collect::<Vec<_>>());
    assert_eq!(proxies("", &[]), None);
    assert_eq!(proxies("[server]\ntrusted_proxies = []\n", &[]), nets(&[]));
    assert_eq!(proxies("", &[("PIXELGATE_SERVER__TRUSTED_PROXIES", "")]), nets(&[]));
    let file = "[server]\ntrusted_proxies = ['10.0.0.0/8', '::1']\n";
    assert_eq!(proxies(file, &[]), nets(&["10.0.0.0/8", "::1/128"]));
    let variable = [("PIXELGATE_SERVER__TRUSTED_PROXIES", "192.0.2.1, 2001:db8::/32")];
    assert_eq!(proxies(file, &variable), nets(&["192.0.2.1/32", "2001:db8::/32"]));
    let problems = from("[server]\ntrusted_proxies = ['10.0.0.0/8', 'nginx', '10.0.0.0/40']\n", &[]).unwrap_err();
    assert_eq!(problems.len(), 2, "{problems:?}");
}

#[test]
fn lists_are_arrays_or_one_text_with_commas() {
    for text in ["['a:1', 'b:2']", "'a:1,b:2'", "' a:1 , b:2 ,'"] {
        let config = from(&format!("[kafka]\nbrokers = {text}\n"), &[]).unwrap();
        assert_eq!(config.kafka.brokers, ["a:1", "b:2"], "{text}");
    }
    for text in ["[]", "''", "' '"] {
        let config = from(&format!("[kafka]\nbrokers = {text}\n"), &[]).unwrap();
        assert!(config.kafka.brokers.is_empty() && !config.journal.publishes, "{text}");
    }
    let config = from("[kafka]\nbrokers = ['a:1']\n", &[("PIXELGATE_KAFKA__BROKERS", "")]).unwrap();
    assert!(config.kafka.brokers.is_empty());
    let problems = from("[kafka]\nbrokers = ['a:1', 5, 'b:port']\n", &[]).unwrap_err();
    assert_eq!(problems.len(), 2, "{problems:?}");
}

#[test]
fn librdkafka_properties_are_quoted_dotted_or_variables() {
    let config = from(
        "[kafka.client]\n'security.protocol' = 'sasl_ssl'\nsasl.username = 'u'\nsocket.timeout.ms = 5000\n\
         socket.keepalive.enable = true\n",
        &[("PIXELGATE_KAFKA__CLIENT__SASL_PASSWORD", "p"), ("PIXELGATE_KAFKA__CLIENT__SASL_USERNAME", "v")],
    )
    .unwrap();
    let all: Vec<(&str, &str)> = config.kafka.client.iter().map(|(name, value)| (name, value.expose())).collect();
    let expected = [
        ("sasl.password", "p"),
        ("sasl.username", "v"),
        ("security.protocol", "sasl_ssl"),
        ("socket.keepalive.enable", "true"),
        ("socket.timeout.ms", "5000"),
    ];
    assert_eq!(all, expected);
}

#[test]
fn librdkafka_properties_that_can_t_be_are_problems_by_name() {
    let problems = from(
        "[kafka.client]\nacks = 1\n'sasl.pasword' = 'hunter2'\nsasl.username = [1]\n'a b' = 1\n\
         'socket.timeout.ms' = 'soon'\n'ssl.ca.location' = 'a'\nssl.ca.location = 'b'\n",
        &[],
    )
    .unwrap_err();
    assert_eq!(problems.len(), 6, "{problems:#?}");
    for start in ["acks: set by", "sasl.pasword: ", "sasl.username: ", "\"a b\": ", "socket.timeout.ms: "] {
        let line = format!("kafka.client.{start}");
        assert!(problems.iter().any(|problem| problem.starts_with(&line)), "{start} in {problems:#?}");
    }
    assert!(!problems.concat().contains("hunter2"));
}

#[test]
fn a_secret_is_read_from_a_file_without_its_last_newline() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("password");
    let name = "PIXELGATE_KAFKA__CLIENT__SASL_PASSWORD_FILE";
    let missing = from("", &[(name, path.to_str().unwrap())]).unwrap_err();
    assert!(missing[0].starts_with("kafka.client.sasl.password: ") && missing[0].contains(name), "{missing:?}");
    for (content, secret) in [("p\n", "p"), ("p\r\n", "p"), ("p\n\n", "p\n"), (" p ", " p ")] {
        std::fs::write(&path, content).unwrap();
        let config = from("", &[(name, path.to_str().unwrap())]).unwrap();
        let (property, value) = config.kafka.client.iter().next().unwrap();
        assert_eq!((property, value.expose()), ("sasl.password", secret));
        assert!(!format!("{config:?}").contains("Secret(\"p"));
    }
    let both = [(name, path.to_str().unwrap()), ("PIXELGATE_KAFKA__CLIENT__SASL_PASSWORD", "q")];
    assert_eq!(from("", &both).unwrap_err().len(), 1, "two answers to one question");
    // librdkafka's own names that end so are not read (and need OIDC, which is not in this build).
    let own = "PIXELGATE_KAFKA__CLIENT__SASL_OAUTHBEARER_ASSERTION_PRIVATE_KEY_FILE";
    let problems = from("", &[(own, "no-such-file.pem")]).unwrap_err();
    assert!(problems[0].starts_with("kafka.client.sasl.oauthbearer.assertion.private.key.file: "), "{problems:?}");
    let problems = from("", &[("PIXELGATE_SERVER__LISTEN_FILE", "x")]).unwrap_err();
    assert!(problems[0].contains("PIXELGATE_SERVER__LISTEN"), "{problems:?}");
}

#[test]
fn a_secret_s_row_shows_nothing() {
    let mut problems = Vec::new();
    for bad in ["", "two words", "größe"] {
        assert_eq!(Kind::Secret(rules::TOKEN).read("a.token", bad.into(), &mut problems), None, "{bad:?}");
    }
    Kind::Secret(rules::TOKEN).read("a.token", toml::Value::Integer(4711), &mut problems);
    assert_eq!(problems.len(), 4, "{problems:?}");
    assert!(problems.iter().all(|problem| !problem.text.contains("two words") && !problem.text.contains("4711")));
    let word = Kind::Secret(rules::TOKEN).read("a.token", "hunter2".into(), &mut problems).unwrap();
    assert_eq!(word.to_toml().unwrap().as_str(), Some("[redacted]"));
    assert!(!format!("{word:?}").contains("hunter2"));
}

#[test]
fn broken_toml_is_one_problem_that_shows_no_line_of_it() {
    let problems = from("[kafka.client]\n\"sasl.password\" = \"hunter2\n", &[]).unwrap_err();
    assert!(problems.len() == 1 && problems[0].starts_with("--config: line 2 "), "{problems:?}");
    assert!(!problems[0].contains("hunter2") && !problems[0].contains('\n'), "{problems:?}");
}

#[test]
fn hostile_names_stay_on_their_line() {
    let problems = from("\"a\\nb\" = 1\n[server]\n\"x\\ny\" = 1\nlisten = \"a\\nb\"\n[jurnal]\nmax_bytes = 1\n", &[]);
    let problems = problems.unwrap_err();
    assert_eq!(problems.len(), 4, "{problems:#?}");
    assert!(problems.iter().all(|problem| !problem.contains('\n')), "{problems:#?}");
    assert!(problems.iter().any(|problem| problem.contains("nearest is journal.max_bytes")), "{problems:#?}");
}

#[test]
fn what_a_proxy_learns_by() {
    let toml = "[registry]\nmode = 'proxy'\nupstream = 'https://a'\nad_accounts = '8, 9'\nlearn = 'any'\n";
    let config = from(toml, &[("PIXELGATE_REGISTRY__UPSTREAM_TOKEN", "hunter2")]).unwrap();
    let learning = &config.registry.learning;
    assert_eq!((learning.ad_accounts.len(), learning.any, learning.sync_interval.as_secs()), (2, true, 60));
    assert_eq!(learning.token.as_ref().unwrap().expose(), "hunter2");
    assert!(!format!("{config:?}{}", config.to_toml()).contains("hunter2"));
    assert!(from("[registry]\nad_accounts = ['act_8']\n", &[]).is_err());
}

#[test]
fn a_proxy_needs_an_upstream() {
    let problems = from("[registry]\nmode = 'proxy'\n", &[]).unwrap_err();
    assert!(problems.len() == 1 && problems[0].starts_with("registry.upstream: missing"), "{problems:?}");
    let toml = "[registry]\nmode = 'proxy'\nupstream = 'https://api.example.com/v1'\nforward_cookies = 'a, b'\n";
    let upstream = from(toml, &[]).unwrap().upstream.unwrap();
    assert_eq!((upstream.options.timeout, upstream.forward_cookies.len()), (Duration::from_secs(15), 2));
    assert!(from("[registry]\nupstream = 'https://api.example.com'\n", &[]).unwrap().upstream.is_none());
}

#[test]
fn other_formats_need_a_schema_registry() {
    let check = |toml: &str, starts: &[&str]| {
        let problems = from(&format!("[kafka]\n{toml}"), &[]).unwrap_err();
        assert!(problems.len() == starts.len(), "{problems:?}");
        for start in starts {
            assert!(problems.iter().any(|problem| problem.starts_with(start)), "{start}: {problems:?}");
        }
    };
    check("format = 'avro'", &["kafka.schema_registry.url: missing, and needed with kafka.format = \"avro\""]);
    check("format = 'xml'", &["kafka.format: "]);
    check("format = 'avro'\n[kafka.schema_registry]\nurl = 'registry:8081'", &["kafka.schema_registry.url: "]);
    let one = "[kafka.schema_registry]\nurl = 'http://a'\n";
    check(&format!("{one}username = 'a'"), &["kafka.schema_registry.password: missing"]);
    check(&format!("{one}password = 'a'"), &["kafka.schema_registry.username: missing"]);
    check(&format!("{one}username = 'a:b'\npassword = 'a'"), &["kafka.schema_registry.username: "]);

    let toml = format!("[kafka]\nformat = 'protobuf'\n{one}username = 'a'\n");
    let config = from(&toml, &[("PIXELGATE_KAFKA__SCHEMA_REGISTRY__PASSWORD", "hunter2")]).unwrap();
    let encoding = config.kafka.encoding.as_ref().unwrap();
    assert_eq!((encoding.format, encoding.registry.auto_register), (crate::publish::Format::Protobuf, true));
    assert_eq!(encoding.registry.credentials.as_ref().unwrap().1.expose(), "hunter2");
    assert!(!format!("{config:?}{}", config.to_toml()).contains("hunter2"));
}

#[test]
fn a_section_must_be_a_table() {
    let problems = from("server = 5\n", &[("PIXELGATE_SERVER__WORKERS", "2")]).unwrap_err();
    assert!(problems.len() == 1 && problems[0].starts_with("server: "), "{problems:?}");
}

#[test]
fn static_pixels_are_checked_one_by_one() {
    let text = "[registry]\nmax_pixels = 1\n[[registry.pixels]]\nid = 42\n[[registry.pixels]]\nid = '43'\nname = 1\n\
                fb_ad_account_id = 'act_8'\n[[registry.pixels]]\nid = '43'\ncolour = 'red'\n";
    let problems = from(text, &[]).unwrap_err();
    for start in ["[0].id: ", "[1].name: ", "[1].fb_ad_account_id: ", "[2].id: 43 is given twice", "[2].colour: "] {
        assert!(problems.iter().any(|line| line.starts_with(&format!("registry.pixels{start}"))), "{problems:#?}");
    }
    assert_eq!(problems.len(), 5, "{problems:#?}");
    let many = "[registry]\nmax_pixels = 1\npixels = [{ id = '1' }, { id = '2' }]\n";
    assert!(from(many, &[]).unwrap_err()[0].starts_with("registry.pixels: 2 pixels"));
}

#[test]
fn overlays_are_checked_table_by_table() {
    let text = "[pixels.'042']\ngpc = 'drop'\n[pixels.'42']\norigins = ['https://shop.example', 5, 'shop.example:1']\n\
                gpc = 'maybe'\nconsent = 1\ncolour = 'red'\n[pixels.'43']\norigins = []\n[pixels]\n'44' = 4\n";
    let problems = from(text, &[("PIXELGATE_PIXELS__42__GPC", "drop")]).unwrap_err();
    for start in [
        "pixels.\"042\": no id",
        "pixels.\"42\".gpc: \"maybe\"",
        "pixels.\"42\".consent: 1 ",
        "pixels.\"42\".colour: unknown",
        "pixels.\"43\".origins: no page",
        "pixels.\"44\": 4 ",
        "pixels.42.gpc: \"PIXELGATE_PIXELS__42__GPC\"",
    ] {
        assert!(problems.iter().any(|line| line.starts_with(start)), "{start} in {problems:#?}");
    }
    let origins =
        problems.iter().filter(|line| line.starts_with("pixels.\"42\".origins: ") && line.contains("allowed"));
    assert_eq!((origins.count(), problems.len()), (3, 10), "{problems:#?}");
    assert!(from("pixels = 5\n", &[]).unwrap_err()[0].starts_with("pixels.*: 5 "));
    let many = (1..=10_001).map(|id| format!("[pixels.'{id}']\n")).collect::<String>();
    assert!(from(&many, &[]).unwrap_err()[0].starts_with("pixels: 10001 pixels are too many"));
}

#[test]
fn listeners_have_ports_of_their_own() {
    let problems = from("[ops]\nlisten = '0.0.0.0:8080'\n[management]\nlisten = '127.0.0.1:8080'\n", &[]).unwrap_err();
    assert_eq!(problems.len(), 2, "ops with the public listener, management with ops: {problems:?}");
    assert!(problems.iter().all(|problem| problem.contains("collides with")), "{problems:?}");
    let meant = from("[management]\nlisten = '127.0.0.1:8080'\n", &[]).unwrap();
    assert_eq!(meant.own_management(), None, "on the public listener, on purpose");
    let own = from("[server]\nlisten = '127.0.0.1:0'\n[ops]\nlisten = '127.0.0.1:0'\n", &[]).unwrap();
    assert_eq!(own.own_management(), None);
    let own = from("[management]\nlisten = '127.0.0.1:8082'\n", &[]).unwrap();
    assert_eq!(own.own_management().map(|address| address.port()), Some(8082));
}

#[test]
fn progress_has_a_topic_of_its_own() {
    for topic in ["pixelgate.events", "pixelgate.rejected"] {
        let problems = from(&format!("[kafka]\nprogress_topic = '{topic}'\n"), &[]).unwrap_err();
        assert!(problems[0].starts_with("kafka.progress_topic: ") && problems[0].contains("its own"), "{problems:?}");
    }
    let config = from("[kafka]\nprogress_topic = 'p'\n", &[]).unwrap();
    assert_eq!(config.kafka.progress_topic.as_deref(), Some("p"));
    assert_eq!(from("", &[]).unwrap().kafka.progress_topic, None);
}

#[cfg(unix)]
#[test]
fn a_value_that_is_no_text_is_a_problem() {
    use std::os::unix::ffi::OsStringExt;
    let mut source = Source::default();
    source.environment([("PIXELGATE_DATA_DIR".into(), OsString::from_vec(vec![0xff]))]);
    let (_, problems) = Words::read(source);
    assert!(problems[0].to_string().starts_with("PIXELGATE_DATA_DIR: "), "{problems:?}");
}
