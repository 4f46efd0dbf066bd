# The cloud function, made of build/function.zip (`just bundle`).

locals {
  bundle = "${path.module}/../build/function.zip"
}

resource "google_storage_bucket_object" "bundle" {
  name   = "${filesha256(local.bundle)}.zip"
  bucket = google_storage_bucket.sources.name
  source = local.bundle
}

# The images that are built of it.
resource "google_artifact_registry_repository" "images" {
  #checkov:skip=CKV_GCP_84:Google's own keys encrypt it; the image holds no secret.
  repository_id = var.function_name
  description   = "Images of the cloud function ${var.function_name}"
  location      = var.region
  format        = "DOCKER"

  cleanup_policies {
    id     = "keep-the-last-ones"
    action = "KEEP"
    most_recent_versions {
      keep_count = 5
    }
  }

  cleanup_policies {
    id     = "delete-the-others"
    action = "DELETE"
    condition {
      older_than = "2592000s" # 30 days
    }
  }

  depends_on = [google_project_service.api]
}

resource "google_cloudfunctions2_function" "function" {
  #checkov:skip=CKV_GCP_124:Dagster may run anywhere: who may call is decided by IAM, not by the network.
  name        = var.function_name
  description = "Does the work that Dagster orchestrates."
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
