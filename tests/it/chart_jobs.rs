//! The Helm chart's Jobs for volumes whose pods are gone: their names, and what one does, run as it is rendered.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use rdkafka::Message;
use serde_json::Value;

use super::broker::Broker;
use super::chart::{KUBERNETES, command_of, objects, of_kind, template};
use super::client::Client;
use super::consumer::{each_committed, read_committed};
use super::gateway::{free_address, output};
use super::tools::{patiently, run, scratch};

const SETS: &[&str] = &["gateways", "fewer"];

fn names(objects: &[Value]) -> BTreeSet<&str> {
    of_kind(objects, "Job").iter().map(|job| job["metadata"]["name"].as_str().unwrap()).collect()
}

/// Kubernetes refuses changes to a Job, and with them the whole `helm upgrade`: who differs must be named differently.
#[test]
fn a_job_that_differs_has_another_name_and_an_equal_one_the_same() {
    let dir = scratch("chart-names-");
    let with = |set: &[&str]| {
        let mut command = template(KUBERNETES[1], SETS);
        for set in set {
            command.args(["--set", set]);
        }
        objects(&run(command, ""), dir.path())
    };
    let first = with(&[]);
    assert_eq!(names(&first).len(), 2);
    assert_eq!(names(&first), names(&with(&[])));
    // What a Job doesn't hold.
    assert_eq!(names(&first), names(&with(&["podDisruptionBudget.maxUnavailable=2"])));
    for set in ["retireStranded=false", "image.tag=0.9.9", "resources.limits.memory=2Gi", "shutdownTimeoutSeconds=30"] {
        let other = with(&[set]);
        assert_eq!(names(&other).len(), 2);
        assert!(names(&first).is_disjoint(&names(&other)), "{set}");
    }
    for job in of_kind(&first, "Job") {
        let (name, labels) = (job["metadata"]["name"].as_str().unwrap(), &job["metadata"]["labels"]);
        assert!(name.len() <= 63, "{name}");
        // As docs/operations.md waits for one.
        let ordinal = labels["pixelgate/ordinal"].as_str().unwrap();
        assert_eq!((labels["app.kubernetes.io/instance"].as_str(), ordinal.len()), (Some("edge"), 1));
        let volumes = job["spec"]["template"]["spec"]["volumes"].as_array().unwrap();
        let claim = &volumes.iter().find(|volume| volume["name"] == "data").unwrap()["persistentVolumeClaim"];
        assert_eq!(claim["claimName"], format!("data-edge-pixelgate-{ordinal}"));
    }
}

/// The program as a container is given it: variables, config and arguments.
fn container(pod: &Value, config: &str, dir: &Path) -> Command {
    let mut command = command_of(pod, config, dir);
    for argument in pod["containers"][0]["args"].as_array().unwrap() {
        command.arg(argument.as_str().unwrap().replace("/etc/pixelgate", &dir.display().to_string()));
    }
    command
}

#[test]
fn a_job_publishes_what_its_pod_left_and_takes_its_node_out() {
    let (broker, topic) = (Broker::shared(), "chart.job");
    let dir = scratch("chart-job-");
    let mut command = template(KUBERNETES[1], SETS);
    command.args(["--set", "retryParked={3}"]);
    let objects = objects(&run(command, ""), dir.path());
    let config = of_kind(&objects, "ConfigMap")[0]["data"]["pixelgate.toml"].as_str().unwrap();
    let topics = format!("events_topic = \"{topic}\"\nrejected_topic = \"{topic}.rejected\"\nprogress_topic = ");
    let config = config.replace("progress_topic = \"pixelgate", &format!("{topics}\"{topic}"));
    let brokers = |address: &str| {
        let (before, rest) = config.split_once("brokers = [").unwrap();
        let (_, after) = rest.split_once(']').unwrap();
        format!("{before}brokers = [\"{address}\"]{after}")
    };
    // The pod takes an event while Kafka is away, and is gone for good.
    let set = &of_kind(&objects, "StatefulSet")[0]["spec"]["template"]["spec"];
    let (public, ops) = (free_address(), free_address());
    let mut pod = container(set, &brokers(&free_address().to_string()), dir.path());
    for (name, address) in [("SERVER", public), ("OPS", ops), ("MANAGEMENT", free_address())] {
        pod.env(format!("PIXELGATE_{name}__LISTEN"), address.to_string());
    }
    let log = fs::File::create(dir.path().join("log")).unwrap();
    let mut pod = pod.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let client = || Client::connect(ops).ok()?.get("/readyz").ok().filter(|reply| reply.status == 200);
    patiently("the pod is ready", client);
    let reply = Client::connect(public).unwrap().get("/offsite_event.php?id=7&value=1.5&currency=GBP").unwrap();
    assert_eq!(reply.status, 200);
    let record = reply.record_id().unwrap().to_owned();
    let job_of = |name: &str| {
        let mut jobs = of_kind(&objects, "Job").into_iter();
        &jobs.find(|job| job["metadata"]["name"].as_str().unwrap().contains(name)).unwrap()["spec"]["template"]["spec"]
    };
    let job = job_of("-publish-3-");
    let run_job = || output(container(job, &brokers(&broker.address()), dir.path()));
    assert_ne!(run_job().status.code(), Some(0), "the pod still holds its volume");
    pod.kill().unwrap();
    pod.wait().unwrap();
    // Kubernetes starts a Job's pod anew until it ends well.
    let done = patiently("the Job ends well", || Some(run_job()).filter(|done| done.status.success()));
    assert!(String::from_utf8_lossy(&done.stdout).contains("\"pending\":0"), "{done:?}");
    let consumed = read_committed(&broker.address(), topic);
    assert_eq!(consumed.len(), 1);
    assert!(consumed[0].value.contains(&record) && consumed[0].value.contains("\"node_id\":\"eu.edge-pixelgate-0\""));
    let mut last = None;
    each_committed(&broker.address(), &format!("{topic}.progress"), |message| {
        last = Some((String::from_utf8_lossy(message.key().unwrap()).into_owned(), message.payload().is_none()));
    });
    assert_eq!(last, Some(("eu.edge-pixelgate-0".to_owned(), true)), "a tombstone of this node");
    // The Job of the next chart's version finds nothing to do, and the one for parked records none.
    assert!(run_job().status.success());
    let retried = output(container(job_of("-retry-3-"), &brokers(&broker.address()), dir.path()));
    assert!(
        retried.status.success() && String::from_utf8_lossy(&retried.stdout).contains("\"delivered\":0"),
        "{retried:?}"
    );
}
