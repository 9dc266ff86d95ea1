"""A bucket's lifecycle rules: ours, which are known by their ids, among those of others."""

from __future__ import annotations

from xml.etree import ElementTree

from .errors import Error, one_line

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
ABORT_UPLOADS = "ansible-mlflow-abort-uploads"
EXPIRE_VERSIONS = "ansible-mlflow-expire-versions"

# A rule is told by its settings: the text of each of its leaves by its path. What has no text is everything, so it is
# left out: an empty prefix, which some servers do not keep.
Settings = dict[str, str]


def wanted_rules(abort_uploads_after_days: int, expire_versions_after_days: int) -> dict[str, Settings]:
    """Our rules by id; no settings where there should be no rule (a number of days that is 0)."""
    abort, expire = {}, {}
    if abort_uploads_after_days:
        abort = {"AbortIncompleteMultipartUpload/DaysAfterInitiation": str(abort_uploads_after_days)}
    if expire_versions_after_days:
        # What was deleted is a marker before its versions; without any version left, the marker hides nothing.
        expire = {
            "NoncurrentVersionExpiration/NoncurrentDays": str(expire_versions_after_days),
            "Expiration/ExpiredObjectDeleteMarker": "true",
        }
    return {
        name: {"Status": "Enabled", **settings} if settings else {}
        for name, settings in ((ABORT_UPLOADS, abort), (EXPIRE_VERSIONS, expire))
    }


def our_rules(xml: str) -> dict[str, Settings]:
    """The settings of our rules in a bucket's lifecycle, by id; empty for one that is not there."""
    found = {_id(rule): _settings(rule) for rule in _rules(_parse(xml))}
    return {name: found.get(name, {}) for name in (ABORT_UPLOADS, EXPIRE_VERSIONS)}


def with_rule(xml: str, name: str, settings: Settings) -> str:
    """A bucket's lifecycle with one of our rules as wanted, and all other rules as they are.

    :returns: XML, or an empty text when no rule is left.
    """
    root = _parse(xml)
    for rule in _rules(root):
        if _id(rule) == name:
            root.remove(rule)
    if settings:
        space = root.tag.removesuffix("LifecycleConfiguration")
        rule = ElementTree.SubElement(root, f"{space}Rule")
        ElementTree.SubElement(rule, f"{space}ID").text = name
        # Every object: S3 wants to be told so.
        _set(rule, space, "Filter/Prefix", "")
        for path, text in settings.items():
            _set(rule, space, path, text)
    ElementTree.register_namespace("", NAMESPACE)
    return ElementTree.tostring(root, encoding="unicode") if _rules(root) else ""


def _parse(xml: str) -> ElementTree.Element:
    if not xml:
        return ElementTree.Element(f"{{{NAMESPACE}}}LifecycleConfiguration")
    try:
        return ElementTree.fromstring(xml)  # noqa: S314 - of the server that holds the artifacts
    except ElementTree.ParseError as error:
        raise Error(f"the lifecycle rules of the bucket are no XML: {one_line(error, 200)}") from None


def _rules(root: ElementTree.Element) -> list[ElementTree.Element]:
    return root.findall("{*}Rule")


def _id(rule: ElementTree.Element) -> str:
    return (rule.findtext("{*}ID") or "").strip()


def _settings(rule: ElementTree.Element) -> Settings:
    settings: Settings = {}

    def walk(element: ElementTree.Element, path: str) -> None:
        for child in element:
            name = f"{path}{child.tag.rpartition('}')[2]}"
            text = (child.text or "").strip()
            if not len(child) and text and name != "ID":
                # Two leaves of one path, as tags have them, must not hide each other.
                settings[name] = f"{settings[name]}, {text}" if name in settings else text
            walk(child, f"{name}/")

    walk(rule, "")
    return settings


def _set(rule: ElementTree.Element, space: str, path: str, text: str) -> None:
    element = rule
    for name in path.split("/"):
        child = element.find(f"{space}{name}")
        element = ElementTree.SubElement(element, f"{space}{name}") if child is None else child
    element.text = text
