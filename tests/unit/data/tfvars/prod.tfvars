# What Terraform was told for MLflow in prod.
environment = "prod"
namespace   = "mlflow-prod"
image       = "ghcr.io/mlflow/mlflow:v3.17.2-full"

mlflow_node_port = 30500

postgres_host          = "prod-postgres.pgsql.svc.cluster.local"
postgres_port          = 5432
postgres_database      = "mlflow"
postgres_auth_database = "mlflow_auth"
postgres_user          = "mlflow"
postgres_password      = "Pg-prod-7f3c51d2a9e84b06"

minio_endpoint   = "http://minio-prod.pgsql.svc.cluster.local:9000"
minio_bucket     = "mlflow"
minio_access_key = "mlflow-prod"
minio_secret_key = "S3-prod-c0ffee4e1d9b7a83526f"
artifact_root    = "s3://mlflow/"

basic_auth_username = "admin"
basic_auth_password = "Admin-prod-19b2e7c4d8f05a63"
flask_secret_key    = "Flask-prod-5d41402abc4b2a76b9719d911017c592"

replicas = 2
resources = {
  requests = { cpu = "500m" }
  limits   = { cpu = "2", memory = "2Gi" }
}
