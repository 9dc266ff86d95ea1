# What Terraform was told for MLflow in stg.
environment = "stg"
namespace   = "mlflow-stg"
image       = "ghcr.io/mlflow/mlflow:v3.17.2-full"

mlflow_node_port = 30501

postgres_host          = "stg-postgres.pgsql.svc.cluster.local"
postgres_port          = 5433
postgres_database      = "mlflow"
postgres_auth_database = "mlflow_auth"
postgres_user          = "mlflow"
postgres_password      = "Pg-stg-7f3c51d2a9e84b06"

minio_endpoint   = "http://minio-stg.pgsql.svc.cluster.local:9000"
minio_bucket     = "mlflow"
minio_access_key = "mlflow-stg"
minio_secret_key = "S3-stg-c0ffee4e1d9b7a83526f"
artifact_root    = "s3://mlflow/"

basic_auth_username = "admin"
basic_auth_password = "Admin-stg-19b2e7c4d8f05a63"
flask_secret_key    = "Flask-stg-5d41402abc4b2a76b9719d911017c592"
