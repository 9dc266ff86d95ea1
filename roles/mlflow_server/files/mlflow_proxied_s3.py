"""S3 for an MLflow server whose clients reach nothing but the server.

MLflow's own repository for s3:// can hand out presigned URLs. A server that has it tells its clients so, and they then
go past it, to the object store's address as the server knows it: there is no setting against that. This one can only
do the work itself. MLflow finds it by the entry point `s3` of the group mlflow.artifact_repository, its interface for
plugins, which takes the place of the repository of its own.
"""

from __future__ import annotations

from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository


class ProxiedS3Repository(ArtifactRepository):
    """What S3ArtifactRepository does, without its interfaces for presigned URLs."""

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        self._s3 = S3ArtifactRepository(artifact_uri, tracking_uri=tracking_uri, registry_uri=registry_uri)

    def log_artifact(self, local_file, artifact_path=None):
        self._s3.log_artifact(local_file, artifact_path)

    def log_artifacts(self, local_dir, artifact_path=None):
        self._s3.log_artifacts(local_dir, artifact_path)

    def list_artifacts(self, path=None):
        return self._s3.list_artifacts(path)

    def delete_artifacts(self, artifact_path=None):
        self._s3.delete_artifacts(artifact_path)

    def upload_archived_trace_data_bytes(self, data):
        self._s3.upload_archived_trace_data_bytes(data)

    def _download_file(self, remote_file_path, local_path):
        self._s3._download_file(remote_file_path, local_path)
