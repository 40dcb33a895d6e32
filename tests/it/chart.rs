//! The Helm chart: what each set of values in deploy/helm/values makes is what Kubernetes takes, and what a pod is
//! given is what the program takes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::gateway::{binary, output};
use super::tools::{node, refusal, root, run, scratch, tools};

/// The oldest that the chart allows, and the newest whose schemas are at hand.
pub const KUBERNETES: [&str; 2] = ["1.27.0", "1.37.0"];
/// Name of a test's file, the values, one over the other.
const SETS: &[(&str, &[&str])] = &[
    ("defaults", &[]),
    ("single", &["single"]),
    ("gateways", &["gateways"]),
    ("authorities", &["authorities"]),
    ("fewer", &["gateways", "fewer"]),
    ("tls", &["tls"]),
];

fn helm(arguments: &[&str], values: &[&str]) -> Command {
    let mut command = Command::new(tools(&["helm"]).join("bin/helm"));
    command.current_dir(root()).args(arguments).stdin(Stdio::null());
    for name in values {
        command.arg("-f").arg(format!("deploy/helm/values/{name}.yaml"));
    }
    command
}

pub fn template(version: &str, values: &[&str]) -> Command {
    let mut command = helm(&["template", "edge", "deploy/helm/pixelgate", "--kube-version", version], values);
    command.args(["--namespace", "web"]);
    command
}

fn rendered(version: &str, values: &[&str]) -> String {
    run(template(version, values), "")
}

/// The objects of a rendering.
pub fn objects(yaml: &str, dir: &Path) -> Vec<Value> {
    fs::write(dir.join("objects.yaml"), yaml).unwrap();
    let mut command = Command::new(tools(&["kubernetes"]).join("kubernetes/bin/python"));
    let program = "import json, sys, yaml; print(json.dumps([d for d in yaml.safe_load_all(open(sys.argv[1])) if d]))";
    command.args(["-c", program]).arg(dir.join("objects.yaml"));
    serde_json::from_str(&run(command, "")).unwrap()
}

pub fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

fn validate(version: &str, file: &Path) -> Command {
    let mut command = Command::new(tools(&["kubernetes"]).join("kubernetes/bin/kubernetes-validate"));
    command.args(["--strict", "-k", version]).arg(file);
    command
}

#[test]
fn each_set_of_values_makes_what_kubernetes_takes() {
    let dir = scratch("chart-");
    for (name, values) in SETS {
        run(helm(&["lint", "--strict", "deploy/helm/pixelgate"], values), "");
        for version in KUBERNETES {
            let file = dir.path().join(format!("{name}.yaml"));
            fs::write(&file, rendered(version, values)).unwrap();
            let said = output(validate(version, &file));
            let words = String::from_utf8_lossy(&said.stdout) + String::from_utf8_lossy(&said.stderr);
            assert!(said.status.success(), "{name}: {words}");
            // Objects of the Prometheus Operator are not Kubernetes' own; their tests are below.
            let unknown = words.lines().filter(|line| line.starts_with("WARN") && !line.contains("monitoring.coreos"));
            assert_eq!(unknown.count(), 0, "{name}: {words}");
        }
    }
    // The check sees a field that doesn't exist, a missing one and a wrong type.
    let whole = rendered(KUBERNETES[1], &[]);
    for (from, to) in [
        ("enableServiceLinks:", "enableServiceLink:"),
        ("serviceName:", "serviceNames:"),
        ("replicas: 1", "replicas: one"),
    ] {
        let file = dir.path().join("broken.yaml");
        assert!(whole.contains(from), "{from}");
        fs::write(&file, whole.replace(from, to)).unwrap();
        refusal(validate(KUBERNETES[1], &file));
    }
}

#[test]
fn what_would_lose_events_or_is_misspelt_is_refused_by_name() {
    for (set, words) in [
        ("replicas=3", "replicas: more than one needs pixels that all nodes know"),
        ("publishStranded={0}", "publishStranded: pod 0 runs and publishes by itself"),
        ("retryParked={0}", "retryParked: pod 0 runs and holds its volume"),
        ("retireStranded=true,publishStranded={1}", "retireStranded: a node is retired in kafka.progress_topic"),
        ("replica=3", "replica"),
        ("volume.size=20", "volume"),
        ("shutdownDelaySeconds=-1", "shutdownDelaySeconds"),
        ("nodeIdPrefix=a b", "nodeIdPrefix"),
        ("image.digest=latest", "digest"),
        ("secrets.PIXELGATE_REGISTRY__DATABASE_FILE.secret=a", "secrets"),
        ("secrets.PIXELGATE_REGISTRY__DATABASE.secret=a", "key"),
    ] {
        let mut command = template(KUBERNETES[1], &[]);
        let said = refusal({
            command.args(["--set", set]);
            command
        });
        assert!(said.contains(words), "{set}: {said}");
    }
    let mut shared = template(KUBERNETES[1], &[]);
    let pixels = "config=[[registry.pixels]]\nid = \"7\"\n";
    shared.args(["--set", "replicas=3", "--set-string", pixels]);
    run(shared, "");
}

/// What a pod's container gives to the program: arguments, and variables with files where this machine has them.
pub fn command_of(pod: &Value, config: &str, dir: &Path) -> Command {
    let container = &pod["containers"][0];
    let secrets = dir.join("secrets");
    fs::create_dir_all(&secrets).unwrap();
    fs::write(dir.join("pixelgate.toml"), config).unwrap();
    let mut command = binary();
    for variable in container["env"].as_array().unwrap() {
        let (name, value) = (variable["name"].as_str().unwrap(), variable["value"].as_str().unwrap_or_default());
        let value = value.replace("$(POD_NAME)", "edge-pixelgate-0").replace("/var/lib", &dir.display().to_string());
        let value = value.replace("/run/secrets/pixelgate", &secrets.display().to_string());
        if name.ends_with("_FILE") {
            let secret = match name.contains("DATABASE") {
                true => "postgres://pixelgate:hidden-text@localhost/pixelgate",
                false => "hidden-text",
            };
            fs::write(&value, secret).unwrap();
        }
        command.env(name, value);
    }
    command
}

/// Each secret of the values is a file where the program looks for it, from the key of the Secret that was named.
fn assert_secrets(values: &[&str], pod: &Value, dir: &Path) {
    let wanted = values.iter().map(|name| fs::read_to_string(root().join(format!("deploy/helm/values/{name}.yaml"))));
    let wanted: Vec<Value> = wanted.flat_map(|yaml| objects(&yaml.unwrap(), dir)).collect();
    let container = &pod["containers"][0];
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let named = |value: &Value, name: &str| list(value).into_iter().find(|one| one["name"] == name).unwrap_or_default();
    for (name, from) in wanted.iter().filter_map(|values| values["secrets"].as_object()).flatten() {
        let directory = named(&container["volumeMounts"], "secrets")["mountPath"].clone();
        let sources = list(&named(&pod["volumes"], "secrets")["projected"]["sources"]);
        let source = sources.iter().map(|source| &source["secret"]).find(|source| source["name"] == from["secret"]);
        let items = list(&source.unwrap_or_else(|| panic!("{name}: {sources:?}"))["items"]);
        let item = items.iter().find(|item| item["key"] == from["key"]).unwrap_or_else(|| panic!("{name}: {items:?}"));
        let path = format!("{}/{}", directory.as_str().unwrap(), item["path"].as_str().unwrap());
        assert_eq!(named(&container["env"], &format!("{name}_FILE"))["value"], path, "{name}");
    }
}

/// Whether all labels of a selector are among these.
fn selects(selector: &Value, labels: &Value) -> bool {
    let wanted = selector["matchLabels"].as_object().unwrap();
    !wanted.is_empty() && wanted.iter().all(|(key, value)| labels[key] == *value)
}

#[test]
fn a_pod_is_given_what_the_program_takes_and_time_enough_to_stop() {
    for (name, values) in SETS {
        let dir = scratch("chart-pod-");
        let objects = objects(&rendered(KUBERNETES[1], values), dir.path());
        let config = of_kind(&objects, "ConfigMap")[0]["data"]["pixelgate.toml"].as_str().unwrap();
        let set = &of_kind(&objects, "StatefulSet")[0]["spec"];
        let pod = &set["template"]["spec"];
        let jobs = of_kind(&objects, "Job");
        assert_eq!(jobs.len(), if *name == "fewer" { 2 } else { 0 });
        for pod in jobs.iter().map(|job| &job["spec"]["template"]["spec"]).chain([pod]) {
            let mut command = command_of(pod, config, dir.path());
            command.args(["config", "--config"]).arg(dir.path().join("pixelgate.toml"));
            let text = run(command, "");
            assert!(!text.contains("hidden-text"), "{text}");
            let effective: toml::Table = text.parse().unwrap();
            let seconds = |key: &str| {
                let text = effective["server"][key].as_str().unwrap().trim_end_matches('s').to_owned();
                text.parse::<u64>().unwrap_or_else(|_| panic!("{key} = {text}"))
            };
            if let Some(grace) = pod["terminationGracePeriodSeconds"].as_u64() {
                assert!(grace > seconds("shutdown_delay") + seconds("shutdown_timeout"), "{name}");
                let prefix = if *name == "gateways" || *name == "fewer" { "eu." } else { "" };
                assert_eq!(effective["node_id"].as_str().unwrap(), format!("{prefix}edge-pixelgate-0"));
            }
            assert_eq!(pod["enableServiceLinks"], false);
            assert_secrets(values, pod, dir.path());
            let security = (&pod["securityContext"], &pod["containers"][0]["securityContext"]);
            assert_eq!(
                (&security.0["runAsNonRoot"], &security.1["readOnlyRootFilesystem"]),
                (&true.into(), &true.into())
            );
        }
        for job in jobs {
            assert!(job["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap().iter().all(
                |variable| {
                    variable["name"] != "PIXELGATE_NODE_ID" // the volume says whose it is
                }
            ));
        }
        assert_eq!(set["persistentVolumeClaimRetentionPolicy"]["whenScaled"], "Retain");
        assert_eq!(set["volumeClaimTemplates"].as_array().map(Vec::len), Some(1), "{name}: a volume per node");
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            assert!(pod["containers"][0][probe].is_object(), "{name}: {probe}");
        }
        assert_spread(name, &objects);
    }
}

/// Nodes are spread and go one at a time; Jobs don't count among them.
fn assert_spread(name: &str, objects: &[Value]) {
    let template = &of_kind(objects, "StatefulSet")[0]["spec"]["template"];
    let constraints = template["spec"]["topologySpreadConstraints"].as_array().unwrap();
    let keys: Vec<&Value> = constraints.iter().map(|constraint| &constraint["topologyKey"]).collect();
    assert_eq!(keys, ["topology.kubernetes.io/zone", "kubernetes.io/hostname"], "{name}");
    let [budget] = of_kind(objects, "PodDisruptionBudget")[..] else { panic!("{name}: one budget") };
    assert_eq!(budget["spec"]["maxUnavailable"], 1, "{name}");
    let constraints = constraints.iter().map(|constraint| &constraint["labelSelector"]);
    for selector in constraints.chain([&budget["spec"]["selector"]]) {
        assert!(selects(selector, &template["metadata"]["labels"]), "{name}: {selector}");
        for job in of_kind(objects, "Job") {
            let labels = &job["spec"]["template"]["metadata"]["labels"];
            assert!(labels.is_object() && !selects(selector, labels), "{name}: {selector} is a Job's, too");
        }
    }
}

#[test]
fn a_certificate_is_mounted_where_the_program_looks_and_as_it_is_renewed() {
    let dir = scratch("chart-tls-");
    let objects = objects(&rendered(KUBERNETES[1], &["tls"]), dir.path());
    let pod = &of_kind(&objects, "StatefulSet")[0]["spec"]["template"]["spec"];
    let volume = pod["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == "tls").unwrap();
    assert_eq!(volume["secret"]["secretName"], "pixel-example-com-tls");
    let container = &pod["containers"][0];
    let mount = container["volumeMounts"].as_array().unwrap().iter().find(|mount| mount["name"] == "tls").unwrap();
    // Kubernetes renews directories, not single files.
    assert!(mount.get("subPath").is_none());
    let directory = mount["mountPath"].as_str().unwrap();
    let variables = container["env"].as_array().unwrap();
    for (name, file) in [("CERTIFICATE", "tls.crt"), ("KEY", "tls.key")] {
        let name = format!("PIXELGATE_SERVER__TLS__{name}");
        let variable = variables.iter().find(|variable| variable["name"] == name.as_str()).unwrap();
        assert_eq!(variable["value"], format!("{directory}/{file}"));
    }
    let public =
        of_kind(&objects, "Service").into_iter().find(|service| service["metadata"]["name"] == "edge-pixelgate");
    assert_eq!(public.unwrap()["spec"]["ports"][0]["name"], "https");
}

#[test]
fn prometheus_finds_the_nodes_and_reads_the_rules() {
    let dir = scratch("chart-rules-");
    let yaml = rendered(KUBERNETES[1], &["single"]);
    let objects = objects(&yaml, dir.path());
    let monitor = &of_kind(&objects, "ServiceMonitor")[0]["spec"];
    let services = of_kind(&objects, "Service");
    let wanted = monitor["selector"]["matchLabels"].as_object().unwrap();
    let found: Vec<_> = services
        .iter()
        .filter(|service| wanted.iter().all(|(key, value)| service["metadata"]["labels"][key] == *value))
        .collect();
    let [nodes] = found[..] else { panic!("{found:?}") };
    assert_eq!(nodes["spec"]["ports"][0]["name"], monitor["endpoints"][0]["port"]);
    let relabeling = &monitor["endpoints"][0]["relabelings"][0];
    assert_eq!(relabeling["sourceLabels"][0], "__meta_kubernetes_pod_name", "names outlast restarts");
    assert_eq!(relabeling["targetLabel"], "instance");
    let label = monitor["jobLabel"].as_str().unwrap();
    assert_eq!(nodes["metadata"]["labels"][label], "pixelgate", "rules say job=\"pixelgate\"");
    // JSON is YAML.
    let rules = of_kind(&objects, "PrometheusRule")[0]["spec"].to_string();
    fs::write(dir.path().join("rules.yml"), rules).unwrap();
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "rules"]).arg(dir.path().join("rules.yml"));
    let said = run(promtool, "the e2e tests need Prometheus: apt-get install prometheus");
    let alerts = fs::read_to_string(root().join("deploy/pixelgate.rules.yml")).unwrap().matches("- alert:").count();
    assert!(alerts > 15 && said.contains("SUCCESS"), "{said}");
    assert_eq!(of_kind(&objects, "PrometheusRule")[0].to_string().matches("\"alert\":").count(), alerts);
}

/// Holds each object of a file against the operator's own definitions. A field that the check never reads is one that
/// the operator doesn't know.
const OPERATOR: &str = r#"
import { readFileSync } from "node:fs";
import * as kinds from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/index";

function watched(value, path, unread) {
  if (typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) return value.map((part, index) => watched(part, `${path}/${index}`, unread));
  const entries = Object.entries(value).map(([key, part]) => [key, watched(part, `${path}/${key}`, unread)]);
  const copy = Object.fromEntries(entries);
  Object.keys(copy).forEach((key) => unread.add(`${path}/${key}`));
  const get = (target, key) => { unread.delete(`${path}/${String(key)}`); return target[key]; };
  return new Proxy(copy, { get });
}
for (const object of JSON.parse(readFileSync(process.argv[2]))) {
  const unread = new Set();
  kinds[object.kind].prototype.validate.call(watched(object, "", unread));
  if (unread.size) throw new Error(`unknown: ${[...unread].join(" ")}`);
  console.log(object.kind);
}
"#;

#[test]
fn the_prometheus_operator_takes_its_objects_and_no_misspelt_ones() {
    let (place, dir) = (node("@kubernetes-models/prometheus-operator@6.0.0"), scratch("chart-operator-"));
    fs::write(place.join("operator.mjs"), OPERATOR).unwrap();
    let judge = |objects: &[&Value]| {
        fs::write(dir.path().join("objects.json"), serde_json::to_string(objects).unwrap()).unwrap();
        let mut command = Command::new("node");
        command.arg(place.join("operator.mjs")).arg(dir.path().join("objects.json"));
        command
    };
    let mut seen = BTreeSet::new();
    for (name, values) in SETS {
        let objects = objects(&rendered(KUBERNETES[1], values), dir.path());
        let of_operator =
            objects.iter().filter(|object| object["apiVersion"].as_str().unwrap().starts_with("monitoring.coreos"));
        let of_operator: Vec<&Value> = of_operator.collect();
        let said = run(judge(&of_operator), "the e2e tests need Node.js: apt-get install nodejs npm");
        assert_eq!(said.lines().count(), of_operator.len(), "{name}");
        seen.extend(said.lines().map(str::to_owned));
    }
    assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), ["PrometheusRule", "ServiceMonitor"]);
    let objects = objects(&rendered(KUBERNETES[1], &["single"]), dir.path());
    let monitor = of_kind(&objects, "ServiceMonitor")[0].to_string();
    for (from, to, told) in [
        ("\"endpoints\":", "\"endpoint\":", "must have required property endpoints"),
        ("\"sourceLabels\":", "\"sourceLabel\":", "/sourceLabel"),
        ("\"port\":\"ops\"", "\"port\":8081", "port must be string"),
    ] {
        assert!(monitor.contains(from), "{from} in {monitor}");
        let said = refusal(judge(&[&serde_json::from_str(&monitor.replace(from, to)).unwrap()]));
        assert!(said.contains(told), "{told} in {said}");
    }
}

#[test]
fn the_chart_has_the_program_s_version() {
    let chart = fs::read_to_string(root().join("deploy/helm/pixelgate/Chart.yaml")).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert!(
        chart.contains(&format!("\nversion: {version}\n")) && chart.contains(&format!("\nappVersion: \"{version}\"\n"))
    );
}
