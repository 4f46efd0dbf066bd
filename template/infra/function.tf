# The cloud function, built from build/function.zip, which `just bundle` creates.

locals {
  bundle = "${path.module}/../build/function.zip"
}

resource "google_storage_bucket_object" "bundle" {
  name   = "${filesha256(local.bundle)}.zip"
  bucket = google_storage_bucket.sources.name
  source = local.bundle
}

# The container images that Google builds from the bundle.
resource "google_artifact_registry_repository" "images" {
  #checkov:skip=CKV_GCP_84:Google-managed keys are enough, since the images contain no secrets.
  repository_id = var.function_name
  description   = "Images of the cloud function ${var.function_name}"
  location      = var.region
  format        = "DOCKER"

  cleanup_policies {
    id     = "keep-latest"
    action = "KEEP"
    most_recent_versions {
      keep_count = 5
    }
  }

  cleanup_policies {
    id     = "delete-older"
    action = "DELETE"
    condition {
      older_than = "2592000s" # 30 days
    }
  }

  depends_on = [google_project_service.api]
}

resource "google_cloudfunctions2_function" "function" {
  #checkov:skip=CKV_GCP_124:Dagster may run anywhere, so IAM controls access instead of the network.
  name        = var.function_name
  description = "Runs the tasks of Dagster assets."
  location    = var.region

  build_config {
    runtime           = "python313"
    entry_point       = "main"
    service_account   = google_service_account.build.name
    docker_repository = google_artifact_registry_repository.images.id

    source {
      storage_source {
        bucket = google_storage_bucket.sources.name
        object = google_storage_bucket_object.bundle.name
      }
    }
  }

  service_config {
    service_account_email            = google_service_account.function.email
    ingress_settings                 = "ALLOW_ALL"
    timeout_seconds                  = var.function_timeout
    available_memory                 = var.function_memory
    available_cpu                    = var.function_cpu
    max_instance_request_concurrency = var.function_concurrency
    max_instance_count               = var.function_max_instances
    min_instance_count               = var.function_min_instances

    environment_variables = {
      FUNCTION_TIMEOUT     = var.function_timeout
      GOOGLE_CLOUD_PROJECT = var.project_id
      MESSAGES_BUCKET      = google_storage_bucket.messages.name
    }
  }

  depends_on = [
    google_artifact_registry_repository_iam_member.build_writes_images,
    google_storage_bucket_iam_member.build_reads_sources,
  ]
}
