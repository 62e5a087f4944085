"""Apache Kafka as a careful operator runs it: TLS, SASL/SCRAM, client certificates, and Kafka's own authorizer.

with SecuredKafka() as kafka:
    kafka.grant("sluice", "topic", "frames", "READ")
    settings = kafka.scram("sluice")       # for a client of that user
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import trustme
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from apache_kafka import ApacheKafka
from consumer.tools.embedded import free_port
from kafka_properties import HOST, Value

ADMIN = "admin"
MECHANISM = "SCRAM-SHA-512"
_ANSWER_S = 10
_KINDS = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "cluster": ResourceType.BROKER,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
}


class SecuredKafka(ApacheKafka):
    """One node. `bootstrap_servers` takes users with passwords, `tls_servers` client certificates; both are TLS.

    Nobody but the administrator may do anything without a grant. `files` holds the certificates and passwords.
    """

    def __init__(self, users: Sequence[str] = ("sluice",), **overrides: Value) -> None:
        super().__init__(1, **overrides)
        self.files = self._directory / "secrets"
        self.files.mkdir()
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(self.files / "ca.crt")
        self._passwords = {name: f"{name}'s ={{}}\\ word" for name in (ADMIN, *users)}  # with what needs escaping
        self.client_settings = self.scram(ADMIN)
        (node,) = self._nodes.values()
        internal, tls = free_port(HOST), free_port(HOST)
        self.tls_servers = f"{HOST}:{tls}"
        self._write_pem("broker", trustme.CA.issue_cert(self.authority, HOST, "localhost"))
        self._overrides = {
            **self._listeners(node.address, internal, self.tls_servers, node.controller_port),
            **self._certificates(),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # The node itself comes by the internal listener, without a name.
            "super.users": f"User:ANONYMOUS;User:{ADMIN}",
            **self._overrides,
        }

    def password_file(self, user: str) -> Path:
        """As a Secret is mounted, or `echo` writes it: with a newline at the end."""
        path = self.files / f"{user}.password"
        path.write_text(self._passwords[user] + "\n")
        path.chmod(0o400)
        return path

    def tls(self) -> dict[str, Value]:
        """Settings of a client that trusts this cluster, and shows no certificate of its own."""
        return {"security.protocol": "SSL", "ssl.ca.location": str(self.files / "ca.crt")}

    def scram(self, user: str, *, password: bool = True) -> dict[str, Value]:
        """Settings of a client that logs in as `user`."""
        login = {"security.protocol": "SASL_SSL", "sasl.mechanism": MECHANISM, "sasl.username": user}
        secret = {"sasl.password": self._passwords[user]} if password else {}
        return {**self.tls(), **login, **secret}

    def certificate(self, user: str) -> tuple[Path, Path]:
        """Files of a certificate and its key, by which `tls_servers` knows the client as `user`."""
        self._write_pem(user, self.authority.issue_cert(f"{user}.example", common_name=user))
        return self.files / f"{user}.crt", self.files / f"{user}.key"

    def grant(self, user: str, kind: str, name: str, right: str) -> None:
        """Allow `user` to do `right` (READ, WRITE, ...) on a topic, a group, ...; `name*`: all that begin so."""
        pattern = ResourcePatternType.PREFIXED if name.endswith("*") else ResourcePatternType.LITERAL
        resource = (_KINDS[kind], name.removesuffix("*"), pattern)
        binding = AclBinding(*resource, f"User:{user}", "*", AclOperation[right], AclPermissionType.ALLOW)
        admin = self.admin()
        for answer in admin.create_acls([binding]).values():
            answer.result(_ANSWER_S)

    def withdraw(self, user: str) -> None:
        """Take all grants of `user` away."""
        anything = (ResourceType.ANY, None, ResourcePatternType.ANY)
        matching = AclBindingFilter(*anything, f"User:{user}", None, AclOperation.ANY, AclPermissionType.ANY)
        admin = self.admin()
        for answer in admin.delete_acls([matching]).values():
            answer.result(_ANSWER_S)

    def _format_options(self) -> Sequence[str]:
        users = (f'{MECHANISM}=[name={name},password="{word}"]' for name, word in self._passwords.items())
        return [option for user in users for option in ("--add-scram", user)]

    def _write_pem(self, name: str, leaf: trustme.LeafCert) -> None:
        key = load_pem_private_key(leaf.private_key_pem.bytes(), None)
        pkcs8 = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # the only form that Kafka reads
        chain = b"".join(each.bytes() for each in leaf.cert_chain_pems)
        for suffix, content in {"key": pkcs8, "crt": chain, "pem": pkcs8 + chain}.items():
            with contextlib.suppress(FileNotFoundError):
                (self.files / f"{name}.{suffix}").unlink()
            (self.files / f"{name}.{suffix}").write_bytes(content)

    def _certificates(self) -> Mapping[str, Value]:
        return {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.files / "broker.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.files / "ca.crt"),
            "listener.name.tls.ssl.client.auth": "required",
            "ssl.principal.mapping.rules": "RULE:^.*CN=([^,]*).*$/$1/",
            "sasl.enabled.mechanisms": MECHANISM,
            "listener.name.client.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
        }

    @staticmethod
    def _listeners(client: str, internal: int, tls: str, controller: int) -> Mapping[str, Value]:
        ours = f"CLIENT://{client},TLS://{tls},INTERNAL://{HOST}:{internal}"
        return {
            "listeners": f"{ours},CONTROLLER://{HOST}:{controller}",
            "advertised.listeners": ours,
            "listener.security.protocol.map": "CLIENT:SASL_SSL,TLS:SSL,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "INTERNAL",
        }
