"""What must not leave the machine: git, and with it wheel and sdist, leaves out what the bundle leaves out, and no more."""

import json
import subprocess

import pytest

from bootstrap import BIN
from installed import PACKAGE, Installed

pytestmark = [pytest.mark.install, pytest.mark.timeout(300)]

# What the bundle thinks of each name of a path, asked of the project itself.
ASK = f"""
import json, sys
from {PACKAGE}.distribution import is_private
print(json.dumps([path for path in json.load(sys.stdin) if any(map(is_private, path.split("/")))]))
"""
FOLDERS = ("", "data/", "data/deep/er/")
PRIVATE = (
    *("keys.json", "keys.json.bak", "keys.json~", "keys.json.new", "KEYS.JSON", "api-keys.json", "secrets.json"),
    *(
        "secret.txt",
        "Secrets.YAML",
        "client_secret_7.apps.json",
        "credentials.json",
        "Credentials",
        "aws-credentials.json",
    ),
    *(
        "prod.env",
        ".env",
        ".env.production",
        "PROD.ENV",
        "prod.env.local",
        ".envrc",
        ".netrc",
        "_netrc",
        ".npmrc",
        ".pypirc",
    ),
    *(
        "id_rsa",
        "ID_RSA",
        "id_ed25519",
        "id_ecdsa_sk",
        "id_dsa.old",
        "server.pem",
        "Server.PEM.bak",
        "tls.key",
        "TLS.Key.1",
    ),
    *(
        "store.p12",
        "store.PFX",
        "store.jks",
        "app.keystore",
        "http.keytab",
        "a.p8",
        "login.kdbx",
        "putty.ppk",
        "a.ovpn",
    ),
    *(
        "mail.asc",
        "mail.gpg",
        "mail.pgp",
        "state.age",
        "kubeconfig",
        "kubeconfig-prod",
        "prod.kubeconfig",
        "x.tfstate.backup",
    ),
    *("service-account.json", "service_account_7.json", "token.json", ".htpasswd", "passwords.csv", "secrets/redis"),
    *("credentials/of.toml", "secrets/module.py", "parts.json~", "parts.json.orig", "parts.bak", ".git-credentials"),
)
NEEDED = (
    *(
        "secrets.py",
        "secret.py",
        "credentials.py",
        "passwords.py",
        "id_rsa.py",
        "kubeconfig.py",
        "keys.py",
        "tokens.json",
    ),
    *(
        "monkeys.json",
        "keyboard.json",
        "environment.json",
        "keynote.txt",
        "parts.json",
        "age.json",
        "secretary.txt",
        "bold.txt",
    ),
    *("py.typed", "readme.md", "token.py", "key", "pem", "hold.csv"),
)


def test_git_and_the_bundle_leave_out_the_same(installed: Installed) -> None:
    """Secrets by any name that people give them, in either case and in any folder, and nothing that is only like it."""
    wanted = [folder + name for folder in FOLDERS for name in PRIVATE]
    paths = [*wanted, *(folder + name for folder in FOLDERS for name in NEEDED)]
    python = installed.path / ".venv" / BIN / "python"
    asked = subprocess.run([python, "-c", ASK], input=json.dumps(paths), capture_output=True, text=True, check=True)
    assert json.loads(asked.stdout) == wanted
    subprocess.run(["git", "init", "--quiet", installed.path], check=True)
    # Of the template's own repository, in which this may lie, nothing counts here.
    line = ["git", "-C", str(installed.path), "check-ignore", "--no-index", "--stdin"]
    ignored = subprocess.run(line, input="\n".join(paths), capture_output=True, text=True, check=True)
    assert ignored.stdout.splitlines() == wanted
