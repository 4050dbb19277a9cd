//! What is installed: the units of systemd run a mesh as they stand, the manifests of Kubernetes keep to its schemas and to what
//! the programs take, and the bill of materials is one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use integration::{
    guide::{self, Shell},
    mesh::{SOON, binary, eventually, repository, target_profile_dir, wait},
    ports::Ports,
    python,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const UNITS: [&str; 4] =
    ["tenon-identity.service", "tenon-policy.service", "tenon-tcs.service", "tenon-sidecar@.service"];
/// The ports that units, settings and the first start name.
const NAMED: [u16; 12] = [15000, 15001, 15006, 15010, 15011, 15012, 15020, 15022, 15030, 15032, 15080, 9002];

fn file(path: &str) -> String {
    fs::read_to_string(repository().join("mesh-config").join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A machine with Tenon on it: folders of its own in place of the system's, other ports, this build's programs.
struct Machine {
    dir: tempfile::TempDir,
    ports: BTreeMap<u16, u16>,
    running: Vec<(String, Child)>,
    /// Holds the ports.
    _ports: Ports,
}

impl Drop for Machine {
    fn drop(&mut self) {
        for (_, child) in &mut self.running {
            let _ = (child.kill(), child.wait());
        }
    }
}

impl Machine {
    fn new() -> anyhow::Result<Self> {
        let mut free = Ports::take(target_profile_dir()?.parent().expect("a target folder"))?;
        let ports = NAMED.map(|port| (port, free.give())).into();
        let machine = Self { dir: tempfile::tempdir()?, ports, running: Vec::new(), _ports: free };
        for folder in ["etc/policy", "run", "state/tenon"] {
            fs::create_dir_all(machine.path(folder))?;
        }
        Ok(machine)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Text with the machine's ports, on loopback.
    fn local(&self, text: &str) -> String {
        let mut local = text.replace("0.0.0.0:", "127.0.0.1:");
        for (named, own) in &self.ports {
            local = local.replace(&format!("127.0.0.1:{named}"), &format!("127.0.0.1:@{own}"));
        }
        local.replace(":@", ":")
    }

    fn address(&self, named: u16) -> String {
        format!("127.0.0.1:{}", self.ports[&named])
    }

    /// The settings in a file of variables.
    fn settings(&self, text: &str) -> Vec<(String, String)> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), self.local(value)))
            .collect()
    }

    fn tenon(&self, args: &[&str]) -> anyhow::Result<Output> {
        Ok(Command::new(binary("tenon")?).args(args).arg("--data").arg(self.path("first")).output()?)
    }

    fn tenon_ok(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.tenon(args)?;
        anyhow::ensure!(output.status.success(), "{args:?}: {output:?}\n{}", self.logs());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs the `ExecStart` of a unit as systemd would, `%i` being `instance`.
    fn start(&mut self, unit: &str, instance: &str, settings: &[&str]) -> anyhow::Result<()> {
        let text = file(&format!("systemd/{unit}"));
        let line = text.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/")).expect("a command");
        let credentials = self.path(&format!("run/{instance}"));
        let line = self
            .local(line)
            .replace("%S", &self.path("state").to_string_lossy())
            .replace("%d", &credentials.to_string_lossy())
            .replace("%i", instance)
            .replace("/etc/tenon", &self.path("etc").to_string_lossy());
        let mut words = line.split(' ');
        let log = fs::File::create(self.path(&format!("{instance}.log")))?;
        for folder in
            text.lines().find_map(|line| line.strip_prefix("StateDirectory=")).into_iter().flat_map(|it| it.split(' '))
        {
            fs::create_dir_all(self.path("state").join(folder.replace("%i", instance)))?;
        }
        let mut command = Command::new(binary(words.next().expect("a program"))?);
        command.args(words).env_clear().stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.envs(settings.iter().flat_map(|text| self.settings(text)));
        self.running.push((instance.to_owned(), command.spawn()?));
        Ok(())
    }

    /// The block of docs/production.md in which `word` stands, with folders of this machine in place of the system's.
    fn shell(&self, word: &str) -> anyhow::Result<Shell> {
        let root = self.path("root").display().to_string();
        // It gives what it makes to root, which nobody but root can.
        let may = if rustix::process::geteuid().is_root() { "" } else { ": " };
        let tmpfiles = format!("{may}systemd-tmpfiles --create --root={root}");
        let others = [
            ("/etc/tenon", self.path("etc").display().to_string()),
            ("/var/lib/tenon", self.path("state/tenon").display().to_string()),
            (" /usr/", format!(" {root}/usr/")),
            (" /etc/systemd/", format!(" {root}/etc/systemd/")),
            ("systemctl enable --now", format!("systemctl --root={root} enable")),
            // Root's, and there is such a user.
            ("chown -R tenon-identity:", format!("grep -q ^tenon-identity: {root}/etc/passwd && echo")),
            ("systemd-sysusers", format!("systemd-sysusers --root={root}")),
            ("systemd-tmpfiles --create", tmpfiles),
            ("=… tenon up", format!("='{PASSPHRASE}' exec tenon up")),
            ("mesh-config/first", self.path("first-mesh").display().to_string()),
        ];
        let local = |line: &str| others.iter().fold(line.to_owned(), |line, (shown, own)| line.replace(shown, own));
        guide::shell("docs/production.md", word, local)
    }

    /// Runs it, and it must end well.
    fn run(&self, word: &str) -> anyhow::Result<()> {
        let (exit, printed) = self.shell(word)?.output(self.dir.path(), &[])?;
        anyhow::ensure!(exit == Some(0), "{word}: {printed}\n{}", self.logs());
        Ok(())
    }

    /// Puts the join token that lies in `/etc/tenon` where the unit of `instance` gets it from, as `LoadCredential=` does.
    fn give_token(&self, name: &str, instance: &str) -> anyhow::Result<()> {
        fs::create_dir_all(self.path(&format!("run/{instance}")))?;
        let token = self.path(&format!("etc/{name}.join-token"));
        fs::copy(&token, self.path(&format!("run/{instance}/join-token"))).with_context(|| format!("{token:?}"))?;
        Ok(())
    }

    fn logs(&self) -> String {
        let one = |(name, _): &(String, Child)| {
            let log = fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
            let end: Vec<&str> = log.lines().rev().take(12).collect();
            format!("== the end of {name}.log, newest first:\n{}\n", end.join("\n"))
        };
        self.running.iter().map(one).collect()
    }

    fn until_ready(&self, what: &str, address: &str) -> anyhow::Result<()> {
        eventually(SOON, what, || {
            let url = format!("http://{address}/ready");
            Ok(Command::new("curl").args(["-sf", "-o", "/dev/null", &url]).status()?.success())
        })
        .map_err(|error| error.context(self.logs()))
    }

    /// `tenon up` of mesh-config/first, until it is ready: makes the CA and the first operator. The pin.
    fn first_start(&self) -> anyhow::Result<String> {
        let folder = self.path("first-mesh");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("mesh.yaml"), self.local(&file("first/mesh.yaml")))?;
        let data = self.path("first");
        let up = self.shell("tenon up")?.start(self.dir.path(), &[])?;
        let made = eventually(SOON, "the first start is made", || {
            Ok(data.join("operator/svid.pem").is_file() && self.tenon(&["policy", "status"])?.status.success())
        });
        made.with_context(|| up.log())?;
        up.end()?;
        let mesh: Value = serde_json::from_slice(&fs::read(data.join("mesh.json"))?)?;
        Ok(mesh["trustBundleSha256"].as_str().expect("a pin").to_owned())
    }
}

const PASSPHRASE: &str = "of the machine that keeps the CA";

/// The steps of docs/production.md.
#[test]
fn the_units_run_a_mesh_from_the_first_start_on_and_again_after_a_restart() -> anyhow::Result<()> {
    let mut machine = Machine::new()?;
    let pin = machine.first_start()?;
    for folder in ["usr/bin", "etc/systemd/system", "usr/lib/sysusers.d", "usr/lib/tmpfiles.d"] {
        fs::create_dir_all(machine.path("root").join(folder))?;
    }
    for program in ["tenon", "tenon-sidecar"] {
        symlink(binary(program)?, machine.path(program))?;
    }
    symlink(repository().join("mesh-config"), machine.path("mesh-config"))?;
    machine.run("install -m 755")?;
    let settings = file("systemd/mesh.env").replace(&"0".repeat(64), &pin);
    let passphrase = format!("TENON_CA_PASSPHRASE={PASSPHRASE}");
    let sidecar = file("systemd/sidecar-media.env");
    let defaults = "TENON_OUTBOUND=127.0.0.1:15001\nTENON_INBOUND=127.0.0.1:15006\nTENON_ADMIN=127.0.0.1:15000\n";
    let manifests = manifests()?;
    let files = manifests.iter().find(|it| it["kind"] == "ConfigMap" && it["metadata"]["name"] == "tenon-policy");
    let files = files.expect("the policy")["data"].as_object().expect("files").clone();
    for (name, text) in &files {
        fs::write(machine.path("etc/policy").join(name), text.as_str().expect("text"))?;
    }
    machine.start(UNITS[0], "identity", &[&settings, &passphrase])?;
    machine.until_ready("the identity service is ready", &machine.address(15012))?;
    machine.run("systemctl enable")?;
    for (name, instance) in [("policy", "tenon-policy"), ("tcs", "tenon-tcs"), ("sidecar-media", "media")] {
        machine.give_token(name, instance)?;
    }
    machine.start(UNITS[1], "tenon-policy", &[&settings])?;
    machine.start(UNITS[2], "tenon-tcs", &[&settings])?;
    machine.start(UNITS[3], "media", &[&settings, &sidecar, defaults])?;
    machine.until_ready("the policy service is ready", &machine.address(15032))?;
    machine.until_ready("the TCS is ready", &machine.address(15022))?;
    machine.until_ready("the sidecar is ready", &machine.address(15000))?;
    assert!(machine.tenon_ok(&["policy", "status"])?.contains("media"), "{}", machine.logs());
    assert!(machine.tenon_ok(&["dashboard"])?.contains(&machine.address(15080)), "{}", machine.logs());

    // All of it again, as after a restart of the machine, with no token.
    for (_, child) in &mut machine.running {
        kill_process(Pid::from_child(child), Signal::TERM)?;
    }
    for (name, mut child) in std::mem::take(&mut machine.running) {
        assert!(wait(&mut child, Duration::from_secs(30))?.success(), "{name} does not end as it should");
    }
    for name in ["tenon-policy", "tenon-tcs", "media"] {
        // What `SetCredential` gives where there is no file.
        fs::write(machine.path(&format!("run/{name}/join-token")), "none-was-given")?;
    }
    for (unit, name) in UNITS.into_iter().zip(["identity", "tenon-policy", "tenon-tcs", "media"]) {
        let more: &[&str] = if name == "media" { &[&sidecar, defaults] } else { &[&passphrase] };
        machine.start(unit, name, &[&[settings.as_str()], more].concat())?;
    }
    machine.until_ready("the sidecar is ready again", &machine.address(15000))
}

#[test]
fn systemd_takes_the_units_and_finds_little_that_they_leave_open() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let programs = target_profile_dir()?;
    let mut paths = Vec::new();
    for unit in UNITS {
        let path = dir.path().join(unit);
        let text = file(&format!("systemd/{unit}"));
        fs::write(&path, text.replace("/usr/bin/", &format!("{}/", programs.display())))?;
        paths.push(path);
    }
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&paths).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    // What the machine's own units lack is not ours.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("tenon")).collect();
    assert!(output.status.success() && ours.is_empty(), "{said}");
    for path in &paths {
        let mut command = Command::new("systemd-analyze");
        let output = command.args(["security", "--offline=true", "--threshold=20"]).arg(path).output()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    // A word that systemd does not know is found.
    fs::write(&paths[0], fs::read_to_string(&paths[0])?.replace("ProtectClock=", "ProtectClok="))?;
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&paths[0]).output()?;
    assert!(String::from_utf8_lossy(&output.stderr).contains("ProtectClok"), "{output:?}");
    Ok(())
}

fn manifests() -> anyhow::Result<Vec<Value>> {
    let output = Command::new(python::program("python")?)
        .arg(repository().join("integration/tests/python/manifests.py"))
        .arg(repository().join("mesh-config/kubernetes"))
        .output()?;
    anyhow::ensure!(output.status.success(), "{output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[test]
fn the_manifests_keep_to_the_schemas_of_kubernetes() -> anyhow::Result<()> {
    let validate = |path: &Path| {
        let mut command = Command::new(python::program("kubernetes-validate")?);
        anyhow::Ok(command.args(["--strict", "-k", "1.33"]).arg(path).output()?)
    };
    let folder = repository().join("mesh-config/kubernetes");
    let mut named = BTreeSet::new();
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if name != "kustomization.yaml" {
            let output = validate(&path)?;
            assert!(output.status.success(), "{name}: {output:?}");
            named.insert(name);
        }
    }
    let kustomization = fs::read_to_string(folder.join("kustomization.yaml"))?;
    let listed = kustomization.lines().filter_map(|line| line.strip_prefix("  - ")).filter(|it| it.ends_with(".yaml"));
    assert_eq!(listed.map(str::to_owned).collect::<BTreeSet<_>>(), named, "what is applied is what is there");
    let dir = tempfile::tempdir()?;
    let wrong = dir.path().join("wrong.yaml");
    fs::write(&wrong, file("kubernetes/media.yaml").replacen("readinessProbe", "readynessProbe", 1))?;
    assert!(!validate(&wrong)?.status.success(), "a misspelt field passes");
    Ok(())
}

/// All containers with the pod that they are of.
fn containers(manifests: &[Value]) -> Vec<(&Value, &Value)> {
    let pods = manifests.iter().map(|it| &it["spec"]["template"]["spec"]).filter(|it| it.is_object());
    pods.flat_map(|pod| {
        let lists = ["initContainers", "containers"].into_iter().filter_map(|list| pod[list].as_array());
        lists.flatten().map(move |container| (pod, container))
    })
    .collect()
}

#[test]
fn what_the_manifests_tell_the_programs_they_take() -> anyhow::Result<()> {
    let manifests = manifests()?;
    let mut of_tenon = 0;
    for (_, container) in containers(&manifests) {
        let image = container["image"].as_str().expect("an image");
        let Some(program) = image.strip_prefix("registry.example/").and_then(|it| it.strip_suffix(":0.1.0")) else {
            continue;
        };
        if program == "media" {
            continue;
        }
        of_tenon += 1;
        let args: Vec<&str> =
            container["args"].as_array().expect("arguments").iter().filter_map(Value::as_str).collect();
        let output = Command::new(binary(program)?).args(&args).arg("--help").output()?;
        assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        let open: BTreeSet<&str> =
            args.iter().filter_map(|arg| Some(arg.strip_prefix("--")?.rsplit_once(':')?.1)).collect();
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            let port = container[probe]["httpGet"]["port"].as_u64().unwrap_or_else(|| panic!("{program}: no {probe}"));
            assert!(
                open.contains(port.to_string().as_str()),
                "{probe} of {program} asks port {port}, and {open:?} are open"
            );
        }
    }
    assert_eq!(of_tenon, 5, "identity, policy, two TCS and a sidecar");
    let maps = manifests.iter().filter(|it| it["kind"] == "ConfigMap" && it["metadata"]["name"] == "tenon-mesh");
    let maps: Vec<&Value> = maps.map(|it| &it["data"]).collect();
    assert!(maps.len() == 2 && maps[0] == maps[1], "one for each namespace, alike: {maps:?}");
    let help = Command::new(binary("tenon-sidecar")?).arg("--help").output()?;
    let help = String::from_utf8(help.stdout)?;
    for name in maps[0].as_object().expect("settings").keys() {
        assert!(help.contains(&format!("{name}=")), "no program reads {name}");
    }
    Ok(())
}

#[test]
fn pods_hold_to_the_restricted_security_standard() -> anyhow::Result<()> {
    for (pod, container) in containers(&manifests()?) {
        let (name, of_pod, own) = (&container["name"], &pod["securityContext"], &container["securityContext"]);
        assert_eq!(of_pod["runAsNonRoot"], true, "{name}");
        assert_eq!(of_pod["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        assert_eq!(
            (&own["allowPrivilegeEscalation"], &own["readOnlyRootFilesystem"]),
            (&Value::Bool(false), &Value::Bool(true)),
            "{name}"
        );
        assert_eq!(own["capabilities"]["drop"][0], "ALL", "{name}");
        assert!(container["resources"]["limits"]["memory"].is_string(), "{name}: what may it take?");
        assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
    }
    Ok(())
}

#[test]
fn the_policy_in_the_manifests_is_one_and_its_tests_pass() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    for map in manifests()?.iter().filter(|it| it["kind"] == "ConfigMap" && it["metadata"]["name"] == "tenon-policy") {
        for (name, text) in map["data"].as_object().expect("files") {
            fs::write(dir.path().join(name), text.as_str().expect("text"))?;
        }
    }
    for (command, says) in [("check", "no problem"), ("test", "2 of 2 calls came out as expected")] {
        let output = Command::new(binary("tenon")?).args(["policy", command, "-f"]).arg(dir.path()).output()?;
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && told.contains(says), "{command}: {output:?}");
    }
    Ok(())
}

#[test]
fn the_bill_of_materials_names_what_is_linked_and_is_the_same_each_time() -> anyhow::Result<()> {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(repository())
        .output()?;
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("metadata.json"), &metadata.stdout)?;
    let bill = || -> anyhow::Result<Vec<u8>> {
        let output = Command::new(python::program("python")?)
            .arg(repository().join("mesh-config/release/sbom.py"))
            .arg("tenon-sidecar")
            .arg(repository().join("Cargo.lock"))
            .stdin(fs::File::open(dir.path().join("metadata.json"))?)
            .output()?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    };
    let text = bill()?;
    assert_eq!(text, bill()?);
    let told: Value = serde_json::from_slice(&text)?;
    assert_eq!((&told["bomFormat"], &told["specVersion"]), (&Value::from("CycloneDX"), &Value::from("1.6")));
    let components = told["components"].as_array().expect("components");
    let scope = |name: &str| components.iter().find(|it| it["name"] == name).map(|it| it["scope"].clone());
    assert_eq!(scope("rustls"), Some("required".into()));
    assert_eq!(scope("aws-lc-rs"), Some("required".into()));
    assert_eq!(scope("proptest"), None, "it is of the tests");
    for component in components.iter().filter(|it| it["purl"].as_str().is_some_and(|purl| !purl.contains("@0.1.0"))) {
        assert!(component["licenses"][0].is_object(), "{component}");
    }
    Ok(())
}
