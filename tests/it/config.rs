//! What `check` and `config` say of a config and of the machine, and that `serve` agrees.

use std::fs;
use std::path::Path;
use std::process::Output;

use super::client::Client;
use super::gateway::{Site, binary, free_address, output};

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Lines on this machine's disk may stand before it: overlay, or a small one.
fn has_line(output: &Output, start: &str) -> bool {
    stdout(output).lines().any(|line| line.starts_with(start))
}

fn run(site: &Site, command: &str, variables: &[(&str, &str)]) -> Output {
    let mut program = binary();
    program.arg(command).arg("--config").arg(site.config()).envs(variables.iter().copied());
    output(program)
}

#[test]
fn memory_is_refused_as_a_data_directory_unless_it_is_meant() {
    let site = Site::new("");
    // Every Linux has it, containers too.
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let directory = memory.path().to_str().unwrap();
    let refused = run(&site, "check", &[("PIXELGATE_DATA_DIR", directory)]);
    assert_eq!(refused.status.code(), Some(2), "{}", stdout(&refused));
    let said = stdout(&refused);
    assert!(said.starts_with("data_dir: ") && said.contains("tmpfs") && said.contains("data_dir_unsafe"), "{said}");
    let serve = run(&site, "serve", &[("PIXELGATE_DATA_DIR", directory)]);
    assert_eq!(serve.status.code(), Some(2), "{}", stderr(&serve));
    let meant = run(&site, "check", &[("PIXELGATE_DATA_DIR", directory), ("PIXELGATE_DATA_DIR_UNSAFE", "true")]);
    assert_eq!(meant.status.code(), Some(0), "{}", stdout(&meant));
    assert!(stdout(&meant).starts_with("warning: data_dir: "), "{}", stdout(&meant));
    assert_eq!(fs::read_dir(memory.path()).unwrap().count(), 0, "a check leaves nothing behind");
}

#[test]
fn a_check_leaves_no_directory_behind() {
    let site = Site::new("");
    let below = site.data().join("not/there/yet");
    let checked = run(&site, "check", &[("PIXELGATE_DATA_DIR", below.to_str().unwrap())]);
    assert_eq!(checked.status.code(), Some(0), "{}", stdout(&checked));
    assert!(!site.data().exists());
}

#[test]
fn a_directory_that_can_t_be_is_a_problem_beside_those_of_the_config() {
    let site = Site::new("");
    let file = site.config().join("below a file");
    let variables = [("PIXELGATE_DATA_DIR", file.to_str().unwrap()), ("PIXELGATE_LOG__LEVEL", "loud")];
    let checked = run(&site, "check", &variables);
    assert_eq!(checked.status.code(), Some(2));
    let said = stdout(&checked);
    assert!(said.lines().any(|line| line.starts_with("data_dir: ") && line.contains("allowed")), "{said}");
    assert!(said.lines().any(|line| line.starts_with("log.level: ")), "{said}");
}

#[test]
fn a_running_gateway_may_be_checked() {
    let site = Site::new("");
    let gateway = site.start();
    let checked = run(&site, "check", &[]);
    assert_eq!(checked.status.code(), Some(0), "{}", stdout(&checked));
    assert!(stderr(&checked).contains(&gateway.id().to_string()), "a note names the holder: {}", stderr(&checked));
    let other = run(&site, "check", &[("PIXELGATE_NODE_ID", "somebody-else")]);
    assert_eq!(other.status.code(), Some(2));
    assert!(has_line(&other, "node_id: "), "{}", stdout(&other));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn an_unreachable_kafka_is_a_warning_and_an_impossible_client_a_problem() {
    let site = Site::new("");
    let nobody = free_address().to_string();
    let mut variables = vec![("PIXELGATE_KAFKA__BROKERS", nobody.as_str())];
    let checked = run(&site, "check", &variables);
    assert_eq!(checked.status.code(), Some(0), "{}", stdout(&checked));
    assert!(has_line(&checked, "warning: kafka.brokers: "), "{}", stdout(&checked));
    variables.push(("PIXELGATE_KAFKA__CLIENT__SECURITY_PROTOCOL", "ssl"));
    variables.push(("PIXELGATE_KAFKA__CLIENT__SSL_CA_LOCATION", "no-such-file.pem"));
    for command in ["check", "serve"] {
        let refused = run(&site, command, &variables);
        let said = stdout(&refused) + &stderr(&refused);
        assert_eq!(refused.status.code(), Some(2), "{command}: {said}");
        assert!(said.contains("kafka.client: ") && said.contains("ssl.ca.location"), "{command}: {said}");
    }
}

#[test]
fn messages_shorter_than_bodies_are_a_problem() {
    let site = Site::new("");
    let nobody = free_address().to_string();
    let limit = ("PIXELGATE_KAFKA__CLIENT__MESSAGE_MAX_BYTES", "30000");
    let variables = [("PIXELGATE_KAFKA__BROKERS", &*nobody), limit];
    let checked = run(&site, "check", &variables);
    assert_eq!(checked.status.code(), Some(2));
    assert!(has_line(&checked, "limits.max_body_bytes: 64KiB is more than the 30000B"), "{}", stdout(&checked));
}

#[test]
fn a_newer_registry_is_a_problem_for_check_and_for_serve() {
    let site = Site::new("");
    assert_eq!(site.start().stop(), Some(0));
    let registry = rusqlite::Connection::open(site.data().join("registry.sqlite")).unwrap();
    registry.pragma_update(None, "user_version", 1000).unwrap();
    drop(registry);
    let checked = run(&site, "check", &[]);
    assert_eq!(checked.status.code(), Some(2), "{}", stdout(&checked));
    assert!(stdout(&checked).lines().any(|line| line.starts_with("data_dir: ") && line.contains("newer")));
    let serve = run(&site, "serve", &[]);
    assert_eq!(serve.status.code(), Some(2), "{}", stderr(&serve));
    assert!(stderr(&serve).contains("newer"), "{}", stderr(&serve));
}

#[test]
fn management_may_have_a_listener_of_its_own() {
    let own = free_address();
    let site = Site::new(&format!("[management]\nlisten = \"{own}\"\n"));
    let gateway = site.start();
    let mut public = Client::connect(site.public).unwrap();
    let mut management = Client::connect(own).unwrap();
    assert_eq!(public.get("/offsitepixels?fb_ad_account_id=8").unwrap().status, 404);
    assert_eq!(public.get("/offsitepixels/1").unwrap().status, 404);
    assert_eq!(management.get("/offsitepixels?fb_ad_account_id=8").unwrap().status, 401);
    assert_eq!(management.get("/offsite_event.php?id=1").unwrap().status, 404);
    drop((public, management));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn management_on_a_public_address_is_a_warning_until_it_is_meant() {
    let site = Site::new("");
    let public = format!("0.0.0.0:{}", site.public.port());
    let told = run(&site, "check", &[("PIXELGATE_SERVER__LISTEN", &public)]);
    assert_eq!(told.status.code(), Some(0));
    assert!(has_line(&told, "warning: management.listen: "), "{}", stdout(&told));
    let variables = [("PIXELGATE_SERVER__LISTEN", &*public), ("PIXELGATE_MANAGEMENT__LISTEN", &public)];
    assert!(!has_line(&run(&site, "check", &variables), "warning: management.listen: "));
}

#[test]
fn the_config_that_holds_can_be_used_as_a_file() {
    let site = Site::new("[kafka.client]\n\"sasl.password\" = \"hunter2\"\n");
    let once = run(&site, "config", &[("PIXELGATE_JOURNAL__RETENTION", "36h")]);
    assert_eq!(once.status.code(), Some(0), "{}", stderr(&once));
    let text = stdout(&once);
    assert!(text.contains("retention = \"36h\"") && text.contains("[redacted]") && !text.contains("hunter2"), "{text}");
    fs::write(site.config(), &text).unwrap();
    assert_eq!(stdout(&run(&site, "config", &[])), text);
}

/// `NAME=VALUE` and `NAME: VALUE` of our variables in a file of deploy/, comments left out.
fn variables(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let Some(at) = line.find("PIXELGATE_") else { continue };
        let Some((name, value)) = line[at..].split_once(['=', ':']) else { continue };
        found.push((name.to_owned(), value.trim_end_matches('\\').trim().trim_matches('"').to_owned()));
    }
    found
}

#[test]
fn what_is_deployed_fits_the_program() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let site = Site::new("");
    let data = site.data();
    let check = |name: &str, config: &Path, variables: Vec<(String, String)>| {
        let mut program = binary();
        program.arg("check").arg("--config").arg(config).envs(variables).env("PIXELGATE_DATA_DIR", &data);
        let checked = output(program);
        assert_eq!(checked.status.code(), Some(0), "{name}: {}{}", stdout(&checked), stderr(&checked));
    };
    let reference = deploy.with_file_name("config").join("pixelgate.toml");
    check("config/pixelgate.toml", &reference, Vec::new());
    check("pixelgate-behind-proxy.toml", &deploy.join("pixelgate-behind-proxy.toml"), Vec::new());
    let of = |name: &str, least: usize| {
        let variables = variables(&fs::read_to_string(deploy.join(name)).unwrap());
        assert!(variables.len() >= least, "{name}: the scan sees {variables:?}");
        variables
    };
    check("pixelgate.service", &reference, of("pixelgate.service", 1));
    check("Dockerfile", &reference, of("Dockerfile", 4));
    // Its container runs the image, so the image's variables hold below its own.
    check("compose.yaml", &reference, [of("Dockerfile", 4), of("compose.yaml", 4)].concat());
}

#[test]
fn configs_in_documents_are_accepted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let site = Site::new("");
    let mut seen = 0;
    for name in ["README.md", "docs/operations.md", "docs/consumers.md", "docs/contract.md"] {
        let text = fs::read_to_string(root.join(name)).unwrap();
        for block in text.split("```toml\n").skip(1) {
            let block = block.split("```").next().unwrap();
            fs::write(site.config(), block).unwrap();
            let held = run(&site, "config", &[]);
            assert_eq!(held.status.code(), Some(0), "{name}: {block}{}", stderr(&held));
            seen += 1;
        }
    }
    assert!(seen > 0, "the scan sees none");
}
