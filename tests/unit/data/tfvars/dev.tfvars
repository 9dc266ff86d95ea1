# What Terraform was told for MLflow in dev.
environment = "dev"
namespace   = "mlflow-dev"
image       = "ghcr.io/mlflow/mlflow:v3.17.2-full"

mlflow_node_port = 30502

postgres_host          = "dev-postgres.pgsql.svc.cluster.local"
postgres_port          = 5434
postgres_database      = "mlflow"
postgres_auth_database = "mlflow_auth"
postgres_user          = "mlflow"
postgres_password      = "Pg-dev-7f3c51d2a9e84b06"

minio_endpoint   = "http://minio-dev.pgsql.svc.cluster.local:9000"
minio_bucket     = "mlflow"
minio_access_key = "mlflow-dev"
minio_secret_key = "S3-dev-c0ffee4e1d9b7a83526f"
artifact_root    = "s3://mlflow/"

basic_auth_username = "admin"
basic_auth_password = "Admin-dev-19b2e7c4d8f05a63"
flask_secret_key    = "Flask-dev-5d41402abc4b2a76b9719d911017c592"
